"""Asking a model: batches, greedy answers, files of answers that outlive a kill."""
