"""The optimizer of a run, with its schedule of learning rates."""

import optax

from jaxalign.engine.optimizer import learning_rates, skip_nonfinite, with_critic_optimizer
from jaxalign.engine.rounding import stochastic_rounding
from jaxalign.runs.settings import Settings


def make_run_optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optimizer with the run's schedule of learning rates; PPO's critic has a rate of its own.

    What is not finite is skipped.
    """
    updates = settings.updates_per_step  # which schedules count

    def scheduled(peak: float) -> optax.GradientTransformation:
        rates = learning_rates(
            peak,
            steps=updates * settings.loop.steps,
            warmup_steps=updates * settings.learning.warmup_steps,
            decay_steps=updates * settings.learning.decay_steps,
            decay=settings.learning.decay,
        )
        return settings.learning.optimizer(rates, max_grad_norm=settings.learning.max_grad_norm)

    optimizer = scheduled(settings.learning.learning_rate)
    if settings.rl is not None and settings.rl.has_critic:
        optimizer = with_critic_optimizer(optimizer, scheduled(settings.rl.critic_learning_rate))
    if settings.learning.param_dtype == "bfloat16":
        optimizer = stochastic_rounding(optimizer)
    return skip_nonfinite(optimizer)
