"""The fixed arrays on which our losses and other libraries' are compared, float32 and int32.

Two prompts of three samples each, five tokens, four words. Ratios and weights reach past every
bound that a row of docs/losses.md sets; one row has a hole in its mask (a tool's answer) and one
has no trained token at all.
"""

import numpy as np

N, G, T, V = 2, 3, 5, 4
B = N * G

_random = np.random.default_rng(7)


def _normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * _random.standard_normal(shape)).astype(np.float32)


logits = _normal(B, T, V)
tokens = _random.integers(1, V, (B, T)).astype(np.int32)  # 0 is tunix's padding
_normalised = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
logp = np.take_along_axis(_normalised, tokens[..., None], -1)[..., 0]
old_logp = logp + _normal(B, T, scale=0.4)
old_logp[1, 0] = logp[1, 0] - 1.3  # a ratio of 3.7 where the advantage is negative
ref_logp = logp + _normal(B, T, scale=0.4)
ref_logp[0, 1] = logp[0, 1] + 2.0
sampler_logp = logp + _normal(B, T, scale=0.4)
sampler_logp[3, :2] = logp[3, :2] - 0.9  # weights of 2.5, 6 for the row
mask = np.array(
    [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1],  # a tool answers in between
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],  # left out: cut off
        [1, 1, 1, 1, 0],
    ],
    np.int32,
)
pair_mask = np.where(mask.any(1, keepdims=True), mask, mask[1])  # three pairs, none without tokens
advantages = np.array([1.4, -0.7, -0.4, 1.9, 0.3, 1.1], np.float32)
token_advantages = _normal(B, T)
lengths = np.array([5, 3, 5, 2, 5, 4], np.int32)

rewards = np.array([[0.57450044, 0.09968603, 0.7419659], [0.8941783, 0.59656656, 0.45325184]])
rewards = rewards.astype(np.float32)
reward_parts = np.stack([rewards, np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 3.0]])], -1)
reward_parts = reward_parts.astype(np.float32)
weights = np.array([1.0, 0.5], np.float32)

values, old_values, rewards_per_token = _normal(B, T), _normal(B, T), _normal(B, T)
returns = values + _normal(B, T)

# Three pairs of answers: summed log-probs, and their numbers of tokens.
chosen_logp = np.array([-3.1, -7.4, -1.2], np.float32)
rejected_logp = np.array([-4.0, -5.2, -2.9], np.float32)
ref_chosen_logp = np.array([-3.6, -7.0, -1.9], np.float32)
ref_rejected_logp = np.array([-3.7, -5.9, -2.2], np.float32)
chosen_length = np.array([3, 5, 2], np.float32)
rejected_length = np.array([4, 4, 3], np.float32)
