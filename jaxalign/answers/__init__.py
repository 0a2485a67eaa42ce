"""Asking a model: batches, answers, files of answers that outlive a kill."""

from jaxalign.answers.asking import Answer, Asking, LanguageModel, answers, ask

__all__ = ["Answer", "Asking", "LanguageModel", "answers", "ask"]
