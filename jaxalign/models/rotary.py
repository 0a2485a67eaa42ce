"""Rotary positions, and how models stretch them to contexts longer than they were made for.

A scaling is a small frozen dataclass: called with the plain frequencies it gives those in use, and
its `attention_factor` multiplies cosine and sine. Source: `modeling_rope_utils` of transformers.
"""

import dataclasses
import math
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: all frequencies divided by one factor (arXiv 2306.15595).

    Attributes:
      factor: by how much the context is stretched.
    """

    attention_factor: ClassVar[float] = 1.0
    factor: float

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Divides all of them, `[d/2]`."""
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 and 3.2 stretch the rotary wavelengths to a longer context.

    Attributes:
      factor: by how much the longest wavelengths are stretched.
      low_freq_factor: wavelengths above original_positions / this are stretched in full.
      high_freq_factor: those below original_positions / this are left alone; linear in between.
      original_positions: the context length before.
    """

    attention_factor: ClassVar[float] = 1.0
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} must be between 0 and high_freq_factor="
                f"{self.high_freq_factor}"
            )

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Divides the frequencies f of long wavelengths λ = 2π/f by the factor.

            f ← f                             λ < P / high
            f ← f / factor                    λ > P / low
            f ← ((1 − s)/factor + s) f        else,  s = (P/λ − low) / (high − low)

        with P the original context; `[d/2]`.
        """
        low, high = self.low_freq_factor, self.high_freq_factor
        periods = self.original_positions * frequencies / (2 * np.pi)  # P/λ
        smooth = np.clip((periods - low) / (high - low), 0.0, 1.0)
        return frequencies * ((1 - smooth) / self.factor + smooth)


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN: slow frequencies are stretched, fast ones left alone (arXiv 2309.00071).

    Attributes:
      factor: by how much the context is stretched.
      original_positions: the context length before.
      attention_factor: multiplies cosine and sine; see `yarn_attention_factor`.
      beta_fast: a frequency that turns at least this often in the original context is left alone.
      beta_slow: one that turns at most this often is stretched in full.
      truncate: whether the bounds between are whole indices of frequencies.
    """

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                f"beta_slow={self.beta_slow} must be between 0 and beta_fast={self.beta_fast}"
            )

    def __call__(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Stretches by where the index i of a frequency is between the bounds, `[d/2]`.

            f_i ← ((1 − r_i) + r_i / factor) f_i,   r_i = clip((i − i(fast)) / (i(slow) − i(fast)))

        where i(β) = d log(P / 2πβ) / (2 log θ) is the index whose frequency turns β times in the
        original context P.
        """
        head_dim = 2 * len(frequencies)
        betas = np.array([self.beta_fast, self.beta_slow])
        bounds = np.log(self.original_positions / (2 * np.pi * betas)) / np.log(theta)
        low, high = bounds * head_dim / 2
        if self.truncate:
            low, high = np.floor(low), np.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 0.001
        ramp = np.clip((np.arange(len(frequencies)) - low) / width, 0.0, 1.0)
        return frequencies * (1 - ramp + ramp / self.factor)


def yarn_attention_factor(factor: float, mscale: float = 1.0, mscale_all: float = 0.0) -> float:
    """YaRN's (1 + m log(factor) / 10) / (1 + m_all log(factor) / 10); 1 below a factor of 1.

    `mscale` is m, `mscale_all` m_all, of the models that scale all dimensions.
    """
    stretch = 0.1 * math.log(max(factor, 1.0))
    return (1 + mscale * stretch) / (1 + mscale_all * stretch)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def rotary_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Frequencies f_i = θ^(−2i/d), `[d/2]` float64, radians per position; d is even.

    `scaling` changes them; None leaves them as they are.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return frequencies if scaling is None else scaling(frequencies, theta)


def rotary_tables(
    positions: jax.Array, frequencies: np.ndarray, attention_factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles p·f_i, each `[B, T, 1, d/2]` float32, times the factor.

    Of positions `[B, T]` int32 and frequencies `[d/2]`.
    """
    chex.assert_rank(positions, 2)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies.astype(np.float32)
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def rotate(x: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (x_i, x_{i+d/2}) of each head `[B, T, heads, d]` by the rotary angles.

    `rotary` is of `rotary_tables`. It computes in float32 and returns the dtype of `x`.
    """
    chex.assert_rank(x, 4)
    cos, sin = rotary
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )
