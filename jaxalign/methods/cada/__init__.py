"""CADA (arXiv 2601.08000)."""
