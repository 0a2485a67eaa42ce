"""The training step: sample, score, advantages, loss, update."""
