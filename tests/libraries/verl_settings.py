"""verl's formulas at commit b178a3cd5 in float64 NumPy; the library itself is not installed."""

from __future__ import annotations

import numpy as np
from libraries import arrays

EXACT = {
    name: np.asarray(array, np.float64)
    for name, array in vars(arrays).items()
    if isinstance(array, np.ndarray)
}


def settings(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split())


def advantages(text: str) -> np.ndarray:
    given, rewards = settings(text), EXACT["rewards"]
    centred = rewards - rewards.mean(1, keepdims=True)
    if given["adv_estimator"] == "rloo":
        return centred * arrays.G / (arrays.G - 1)
    if given.get("norm_adv_by_std_in_grpo") == "False":
        return centred
    return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-6)


def policy_loss(text: str) -> np.ndarray:
    given, mask = settings(text), EXACT["mask"]
    if "kl_loss_type" in given:
        return reduced(kl(given["kl_loss_type"]), mask, "token-mean")
    logp, a = EXACT["logp"], EXACT["advantages"][:, None]
    log_ratio = logp - EXACT["old_logp"]
    if given["loss_mode"] == "gspo":
        log_ratio = (log_ratio * mask).sum(1, keepdims=True) / np.maximum(mask.sum(1), 1)[:, None]
    rho = np.exp(log_ratio) * np.ones_like(logp)
    clipped = np.clip(rho, 0.8, 1.2)
    if given["loss_mode"] == "cispo":
        return reduced(-clipped * a * logp, mask, "token-mean")
    if given["loss_mode"] == "sapo":
        tau = np.where(a > 0, 1.0, 1.05)
        gate = 4 / tau / (1 + np.exp(-tau * (rho - 1)))
        return reduced(-gate * a, mask, "seq-mean-token-mean")
    loss = np.maximum(-rho * a, -clipped * a)
    if given["loss_mode"] == "gspo":
        return reduced(loss, mask, "seq-mean-token-mean")
    loss = np.where(a < 0, np.minimum(loss, -3.0 * a), loss)
    return reduced(loss, mask, given.get("loss_agg_mode", "token-mean"))


def kl(kind: str) -> np.ndarray:
    d = EXACT["ref_logp"] - EXACT["logp"]
    return {"kl": -d, "mse": d**2 / 2}[kind]


def reduced(loss: np.ndarray, mask: np.ndarray, mode: str) -> np.ndarray:
    rows, counts = (loss * mask).sum(1), mask.sum(1)
    if mode == "token-mean":
        return rows.sum() / counts.sum()
    if mode == "seq-mean-token-mean":
        return (rows / (counts + 1e-8)).sum() / (counts > 0).sum()
    if mode == "seq-mean-token-sum":
        return rows.sum() / (counts > 0).sum()
    return rows.sum() / arrays.T


def importance_weights(text: str) -> np.ndarray:
    mask = EXACT["mask"]
    log_weight = (EXACT["logp"] - EXACT["sampler_logp"]) * mask
    if settings(text)["rollout_is"] == "sequence":
        log_weight = log_weight.sum(1, keepdims=True) * np.ones_like(mask)
    return np.where(mask > 0, np.minimum(np.exp(log_weight), 2.0), 1.0)


def lengths(text: str) -> np.ndarray:
    given = settings(text)
    buffer, longest = int(given["overlong_buffer.len"]), int(given["max_resp_len"])
    return np.minimum(-(EXACT["lengths"] - (longest - buffer)) / buffer, 0)


def generalized_advantages(_: str) -> np.ndarray:
    """γ = λ = 1: rewards from here on, less the value; then whitened."""
    mask = EXACT["mask"]
    left = np.cumsum((EXACT["rewards_per_token"] * mask)[:, ::-1], 1)[:, ::-1]
    a = left - EXACT["values"]
    count = mask.sum()
    mean = (a * mask).sum() / count
    variance = ((a - mean) ** 2 * mask).sum() / (count - 1)
    return (a - mean) / np.sqrt(variance + 1e-8) * mask


def value_loss(text: str) -> np.ndarray:
    clip = float(settings(text)["cliprange_value"])
    values, old, target = EXACT["values"], EXACT["old_values"], EXACT["returns"]
    near = np.clip(values, old - clip, old + clip)
    loss = np.maximum((values - target) ** 2, (near - target) ** 2) / 2
    return reduced(loss, EXACT["mask"], "token-mean")
