"""Runs TRL's own trainers on `arrays`: real trainer objects, whose model's numbers are replaced."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from libraries import arrays
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.rewards import get_soft_overlong_punishment

CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def tokenizer() -> Any:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 8)}}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT
    )


def tiny_model(folder: str) -> str:
    """A random model on disk, from where a trainer loads its policy and its reference."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    model.save_pretrained(f"{folder}/model")
    return f"{folder}/model"


def entropy(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64))
    shares = exact / exact.sum(-1, keepdims=True)
    return -(shares * np.log(shares)).sum(-1)


def double(array: np.ndarray, gradient: bool = False) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64, requires_grad=gradient)


def online_trainer(
    folder: str, config: dict[str, Any], rewards: np.ndarray, kinds: Any = (GRPOTrainer, GRPOConfig)
) -> Any:
    """A trainer of N prompts, G samples each, whose reward functions return `rewards`."""
    make_trainer, make_config = kinds

    def reward_function(k: int) -> Any:
        def reward(completions: list[Any], **_: Any) -> list[float]:
            return rewards[..., k].reshape(-1).tolist()

        reward.__name__ = f"reward_{k}"
        return reward

    trainer = make_trainer(
        model=tiny_model(folder),
        reward_funcs=[reward_function(k) for k in range(rewards.shape[-1])],
        args=make_config(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            num_generations=arrays.G,
            per_device_train_batch_size=arrays.B,
            max_completion_length=arrays.T,
            **config,
        ),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * arrays.N}),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def completion_ids() -> list[list[int]]:
    """Completions of the arrays' lengths, whole rows, which end with the end token if trained."""
    ended = arrays.mask.any(1)
    return [[2] * (n - 1) + [1 if e else 2] for n, e in zip(arrays.lengths, ended, strict=True)]


def prepared(trainer: Any, tool_mask: bool = False) -> dict[str, torch.Tensor]:
    """What the trainer makes of samples: advantages, masks, importance ratios."""
    ids = completion_ids()
    kept = [arrays.mask[i, :n].tolist() for i, n in enumerate(arrays.lengths)]
    sampler = [arrays.sampler_logp[i, :n].tolist() for i, n in enumerate(arrays.lengths)]

    def generate(prompts: list[Any]) -> tuple[Any, ...]:
        asked, texts = [[2, 3]] * len(prompts), ["w2"] * len(ids)
        masks = kept if tool_mask else None
        if isinstance(trainer, RLOOTrainer):
            return asked, ids, texts
        return asked, ids, masks, texts, sampler, {}, None, []

    trainer._generate = generate
    reference = getattr(trainer, "ref_model", None)
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        double(arrays.ref_logp if model is reference else arrays.logp),
        None,
        None,
    )
    return trainer._generate_and_score_completions([{"prompt": "w2 w3"}] * arrays.B)


def advantages(folder: str, config: dict[str, Any]) -> np.ndarray:
    parts = arrays.reward_parts
    if config.get("multi_objective_aggregation") == "normalize_then_sum":
        config = {**config, "reward_weights": arrays.weights.tolist()}
    else:
        parts = arrays.rewards[..., None]
    got = prepared(online_trainer(folder, config, parts))["advantages"]
    return got.numpy().reshape(arrays.N, arrays.G)


def leave_one_out_advantages(folder: str, config: dict[str, Any]) -> np.ndarray:
    kinds = RLOOTrainer, RLOOConfig
    trainer = online_trainer(folder, config, arrays.rewards[..., None], kinds)
    return prepared(trainer)["advantages"].numpy().reshape(arrays.N, arrays.G)


def importance_weights(folder: str, config: dict[str, Any]) -> np.ndarray:
    trainer = online_trainer(folder, config, arrays.rewards[..., None])
    trainer.use_vllm = True  # it samples elsewhere: the samples above
    weights = prepared(trainer, tool_mask=True)["importance_sampling_ratio"].numpy()
    return np.where(arrays.mask > 0, np.broadcast_to(weights, arrays.mask.shape), 1.0)


def truncated_mask(folder: str, config: dict[str, Any]) -> np.ndarray:
    got = prepared(online_trainer(folder, config, arrays.rewards[..., None]))["completion_mask"]
    return got.numpy().astype(bool)


def policy_loss(folder: str, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient with respect to the log-probs."""
    trainer = online_trainer(folder, config, arrays.rewards[..., None])
    logp, entropies = double(arrays.logp, gradient=True), double(entropy(arrays.logits))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropies, None)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": torch.ones(arrays.B, 1, dtype=torch.long),
            "prompt_mask": torch.ones(arrays.B, 1, dtype=torch.long),
            "completion_ids": torch.tensor(arrays.tokens, dtype=torch.long),
            "completion_mask": torch.tensor(arrays.mask, dtype=torch.long),
            "advantages": double(arrays.advantages),
            "old_per_token_logps": double(arrays.old_logp),
            "ref_per_token_logps": double(arrays.ref_logp),
            "num_items_in_batch": torch.tensor(arrays.mask.sum()),
        },
    )
    loss.backward()
    return loss.detach().numpy(), logp.grad.numpy()


def overlong_penalty(_: str, config: dict[str, Any]) -> np.ndarray:
    penalty = get_soft_overlong_punishment(**config)
    return np.array(penalty(completion_ids=[[2] * n for n in arrays.lengths]))


def preference_loss(folder: str, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient with respect to the chosen and the rejected answers' sums."""
    rows = {"prompt": ["w2"], "chosen": ["w3"], "rejected": ["w4"]}
    trainer = DPOTrainer(
        model=tiny_model(folder),
        args=DPOConfig(output_dir=folder, use_cpu=True, bf16=False, report_to=[], **config),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_dict(rows),
    )
    trainer.precompute_ref_logps = True
    summed = double(np.concatenate([arrays.chosen_logp, arrays.rejected_logp]), gradient=True)
    counts = torch.tensor(np.concatenate([arrays.chosen_length, arrays.rejected_length])).long()
    mask = torch.arange(6)[None] < counts[:, None]
    per_token = torch.where(mask, (summed / counts)[:, None], 0.0)
    logged = {"entropy": mask * 0.0, "mean_logits": mask * 0.0, "is_top1": mask}
    outputs = types.SimpleNamespace(log_probs=per_token, loss=None, **logged)
    inputs = {
        "input_ids": torch.ones(6, 7, dtype=torch.long),
        "attention_mask": torch.ones(6, 7, dtype=torch.long),
        "completion_mask": torch.nn.functional.pad(mask.long(), (1, 0)),
        "ref_chosen_logps": double(arrays.ref_chosen_logp),
        "ref_rejected_logps": double(arrays.ref_rejected_logp),
    }
    loss = trainer._compute_loss(lambda **_: outputs, inputs, return_outputs=False)
    loss.backward()
    return loss.detach().numpy(), summed.grad.numpy()


def reference_free_loss(_: str, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """SimPO of `CPOTrainer` or the odds-ratio term of `ORPOTrainer`, on means over tokens.

    These two trainers want a data set and a collator to be built; the method that holds the formula
    needs only its settings.
    """
    lengths = np.concatenate([arrays.chosen_length, arrays.rejected_length])
    summed = double(np.concatenate([arrays.chosen_logp, arrays.rejected_logp]), gradient=True)
    chosen, rejected = (summed / double(lengths)).chunk(2)
    settings = types.SimpleNamespace(
        alpha=0.0, label_smoothing=0.0, accelerator=types.SimpleNamespace(device="cpu")
    )
    settings.__dict__.update(config)
    if config.get("loss_type") == "simpo":
        loss = CPOTrainer.cpo_loss(settings, chosen, rejected)[0].mean()
    else:
        loss = -ORPOTrainer.odds_ratio_loss(settings, chosen, rejected)[0].mean()
    loss.backward()
    return loss.detach().numpy(), summed.grad.numpy()


def supervised_loss(folder: str, config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient with respect to the logits."""
    trainer = SFTTrainer(
        model=tiny_model(folder),
        args=SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to=[], **config),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_dict({"prompt": ["w2"], "completion": ["w3"]}),
    )
    logits = double(arrays.logits, gradient=True)
    mask, tokens = torch.tensor(arrays.mask), torch.tensor(arrays.tokens).long()
    logp = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0] * mask
    outputs = types.SimpleNamespace(
        log_probs=logp, label_mask=mask, entropy=logp.detach(), is_top1=mask, loss=None
    )
    inputs = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    loss = trainer.compute_loss(lambda **_: outputs, inputs)
    loss.backward()
    return loss.detach().numpy(), logits.grad.numpy()


def run(section: str, folder: str, setting: str) -> Any:
    """Value, or value and gradient, of a row of docs/losses.md."""
    name, _, arguments = setting.partition("(")
    config = eval(f"dict({arguments}") if arguments else {}
    if name == "get_soft_overlong_punishment":
        return overlong_penalty(folder, config)
    if name == "RLOOConfig":
        return leave_one_out_advantages(folder, config)
    if name in ("CPOConfig", "ORPOConfig"):
        return reference_free_loss(folder, config)
    return {
        "Advantages": advantages,
        "Policy loss": policy_loss,
        "Sampler and trainer": importance_weights,
        "Lengths": truncated_mask,
        "Preferences": preference_loss,
        "Supervised": supervised_loss,
    }[section](folder, config)
