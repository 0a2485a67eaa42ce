"""Models as files: GGUF, Hugging Face folders, their weights and architectures."""
