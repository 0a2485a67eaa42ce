"""The commands of `jaxalign`, one a module.

jax and transformers take seconds to import, so each command imports what it needs when it runs.
"""
