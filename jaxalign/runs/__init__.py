"""What surrounds the training of every experiment: settings, batches, loop, checkpoints."""
