"""What a model is still good for: perplexity, word problems, lm-eval tasks."""
