"""What a training step needs on a TPU slice, found out by compiling it without one."""
