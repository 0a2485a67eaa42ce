"""Pages and plots of runs and evaluations."""
