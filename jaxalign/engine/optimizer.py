"""The optimizer of the experiments: AdamW with short memories, warm-up, a held rate, decay."""

import optax

ADAM_BETAS = (0.5, 0.95)
"""Ours: a run has tens of steps, and the pull to refuse turns within a few."""


def learning_rates(
    peak: float, *, steps: int, warmup_steps: int, decay_steps: int
) -> optax.Schedule:
    """Linear warm-up to `peak`, a constant rate, linear decay to zero.

    η_t = peak · (t + 1)/(warmup + 1)     t < warmup
    η_t = peak                            until steps − decay
    η_t = peak · (steps − t)/decay        after that

    Args:
      peak: the highest rate.
      steps: the run's; a warm-up or decay that does not fit is cut short.
      warmup_steps: steps until the full rate.
      decay_steps: last steps, over which it falls.
    """
    warmup = min(warmup_steps, steps)
    decay = min(decay_steps, steps - warmup)
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / (warmup + 1), peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        [warmup, steps - decay],
    )


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule, *, max_grad_norm: float
) -> optax.GradientTransformation:
    """AdamW (`ADAM_BETAS`, no weight decay) on gradients clipped to a global norm."""
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(learning_rate, b1=ADAM_BETAS[0], b2=ADAM_BETAS[1], weight_decay=0.0),
    )
