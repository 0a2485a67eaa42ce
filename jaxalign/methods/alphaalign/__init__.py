"""AlphaAlign (arXiv 2507.14987)."""
