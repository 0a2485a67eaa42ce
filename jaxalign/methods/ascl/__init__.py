"""ASCL with IFPO (arXiv 2602.13562)."""
