"""What knows no model: errors, files, processes, progress, statistics."""
