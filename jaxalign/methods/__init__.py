"""The papers: rewards, data and settings of each."""
