"""Each architecture against `transformers`, on tiny models that it made, in float32."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained, save_pretrained, sequence_scores
from jaxalign.models.files.hf_config import make_config
from jaxalign.models.heads import logits, output_weight
from jaxalign.models.rotary import rotary_frequencies
from jaxalign.sampling import Greedy, sample

torch = pytest.importorskip("torch", reason="torch is only installed on Python 3.11")
transformers = pytest.importorskip("transformers")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

pytestmark = pytest.mark.torch

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
FAMILIES = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "mistral": ("MistralConfig", {"sliding_window": 128, "head_dim": 8}),
    "qwen2.5": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 12, "tie_word_embeddings": True}),
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
SHORT = {"original_max_position_embeddings": 32}
SCALINGS = {
    "linear": LINEAR,
    "yarn": YARN,
    "yarn of a shorter context": YARN | SHORT,
    "yarn with exact bounds": YARN | SHORT | {"truncate": False, "beta_fast": 8, "beta_slow": 2},
    "yarn with another factor": YARN | {"attention_factor": 0.7, "beta_fast": 4.0},
    "yarn with scales": YARN | SHORT | {"mscale": 2.0, "mscale_all_dim": 0.5},
    "yarn with one scale": YARN | SHORT | {"mscale": 2.0},
    "yarn that stretches all": YARN | {"original_max_position_embeddings": 4},
    "llama3": LLAMA3,
}
PROMPTS = [[5, 900, 17, 44000, 3, 3, 81], [12, 7, 30000]]
NEW_TOKENS = 6
TOKENS = np.random.default_rng(0).integers(49152, size=(2, 100)).astype(np.int32)


def random_model(name, options, folder, tokenizer):
    """One of transformers, saved."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**SIZES, **options)
    ).float()
    with torch.no_grad():
        for value in theirs.parameters():  # biases start at 0 and norms at 1, which shows nothing
            value.add_(0.2 * torch.randn(value.shape))
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return theirs.eval()


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request, tmp_path_factory, smollm2_tokenizer):
    """A random model of transformers, what we load of it, and its folder."""
    name, options = request.param
    folder = tmp_path_factory.mktemp(name) / "model"
    theirs = random_model(name, options, folder, smollm2_tokenizer)
    return theirs, load_pretrained(folder, dtype=jnp.float32)


def their_logits(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.tensor(np.asarray(tokens))).logits.numpy()


@pytest.mark.parametrize("rope", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("head_dim", [2, 8, 64])
def test_scaled_frequencies_are_theirs(rope, head_dim):
    rope = dict(rope)
    config = transformers.LlamaConfig(**SIZES, head_dim=head_dim, rope_parameters=rope)
    fields = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "rope_parameters": rope}
    ours = make_config(Path("config.json"), fields, 2)
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    frequencies = rotary_frequencies(head_dim, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
    assert ours.rope_scaling.attention_factor == pytest.approx(factor, rel=1e-12)


def test_a_scaling_and_a_head_that_differs_from_the_tied_table(tmp_path, smollm2_tokenizer):
    """transformers 5 uses such a head, with a warning like ours; and what we save again."""
    folder = tmp_path / "model"
    options = {"rope_parameters": SCALINGS["yarn with scales"], "tie_word_embeddings": False}
    random_model("LlamaConfig", options, folder, smollm2_tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = load(folder).float().eval()
    model, params, tokenizer = load_pretrained(folder, dtype=jnp.float32)
    assert not model.config.tie_embeddings
    expected = assert_same_logits(theirs, model, params)
    save_pretrained(tmp_path / "again", model, params, tokenizer)
    again = load(tmp_path / "again").float().eval()
    np.testing.assert_allclose(their_logits(again, TOKENS), expected, atol=1e-4, rtol=0)


def test_logits_are_theirs(family):
    theirs, (model, params, _) = family
    assert_same_logits(theirs, model, params)


def assert_same_logits(theirs, model, params):
    """100 positions, beyond those that Llama 3.1's model here was made for."""
    positions = np.broadcast_to(np.arange(100), TOKENS.shape)

    @jax.jit
    def run(params):
        everything = jnp.ones(TOKENS.shape, bool)
        hidden, _ = model.apply({"params": params}, TOKENS, positions, everything)
        return logits(hidden, output_weight(params))

    expected = their_logits(theirs, TOKENS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(run(params), expected, atol=1e-4, rtol=0)
    return expected


def padded(side, width=8):
    """The prompts in rows of one width, and where they stand."""
    tokens, mask = np.zeros((2, width), np.int32), np.zeros((2, width), bool)
    for row, prompt in enumerate(PROMPTS):
        place = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        tokens[row, place], mask[row, place] = prompt, True
    return tokens, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(family, side):
    theirs, (model, params, _) = family
    tokens, mask = padded(side)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    hidden, _ = model.apply({"params": params}, tokens, positions, mask)
    ours = logits(hidden, output_weight(params))
    for row, prompt in enumerate(PROMPTS):
        expected = their_logits(theirs, [prompt])[0]
        np.testing.assert_allclose(ours[row][mask[row]], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_decoding_is_theirs(family, side):
    """Ours with prefill, cache and padding; theirs on each prompt alone, again and again."""
    theirs, (model, params, _) = family
    prompts, mask = padded(side)
    rollout = sample(
        model,
        params,
        jnp.asarray(prompts),
        jnp.asarray(mask),
        jax.random.key(0),
        samples_per_prompt=1,
        max_new_tokens=NEW_TOKENS,
        method=Greedy(),
        stop=(),
    )
    for row, prompt in enumerate(PROMPTS):
        whole, logps = list(prompt), []
        for _ in range(NEW_TOKENS):
            last = torch.tensor(their_logits(theirs, [whole])[0, -1])
            whole.append(int(last.argmax()))
            logps.append(float(last.log_softmax(-1).max()))
        assert rollout.tokens[row].tolist() == whole[len(prompt) :]
        np.testing.assert_allclose(rollout.logps[row], logps, atol=1e-4, rtol=0)


def test_a_saved_model_is_the_same_for_them_and_for_us(family, tmp_path):
    theirs, (model, params, tokenizer) = family
    save_pretrained(tmp_path / "model", model, params, tokenizer)
    again, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokens = np.arange(60)[None]
    expected = their_logits(theirs, tokens)
    np.testing.assert_allclose(
        their_logits(again.float().eval(), tokens), expected, atol=1e-4, rtol=0
    )
    ours, loaded, _ = load_pretrained(tmp_path / "model", dtype=jnp.float32)
    assert ours.config == model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


# --- score heads ---------------------------------------------------------------------------------

CLASSIFIERS = {
    "llama reward model": ("LlamaConfig", {"num_labels": 1, "tie_word_embeddings": False}),
    "qwen2.5 reward model": ("Qwen2Config", {"num_labels": 1, "tie_word_embeddings": True}),
    "qwen3 classifier": ("Qwen3Config", {"head_dim": 12, "num_labels": 2}),
    "mistral classifier": ("MistralConfig", {"sliding_window": None, "num_labels": 3}),
}


@pytest.fixture(scope="module", params=CLASSIFIERS.values(), ids=CLASSIFIERS)
def classifier(request, tmp_path_factory, smollm2_tokenizer):
    """A random classifier of transformers, in a folder."""
    name, options = request.param
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_config(
        getattr(transformers, name)(**SIZES, **options, pad_token_id=0)
    ).float()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.2 * torch.randn(value.shape))
    folder = tmp_path_factory.mktemp(name) / "classifier"
    theirs.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return theirs.eval(), folder


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_theirs(classifier, side, tmp_path):
    """Also after saving and loading it again, by us and by them."""
    theirs, folder = classifier
    model, params, tokenizer = load_pretrained(folder, dtype=jnp.float32, classifier=True)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 49152, size=(3, 9)).astype(np.int32)
    length = np.array([[9], [4], [1]])
    place = np.arange(9)
    mask = place >= 9 - length if side == "left" else place < length
    tokens = np.where(mask, tokens, 0)

    def their_scores(model):
        with torch.no_grad():
            return model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits.numpy()

    expected = their_scores(theirs)
    assert expected.shape == (3, model.config.num_labels) and expected.std() > 0.1
    close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=0)
    close(sequence_scores(model, params, tokens, mask), expected)
    save_pretrained(tmp_path / "model", model, params, tokenizer)
    ours, again, _ = load_pretrained(tmp_path / "model", dtype=jnp.float32, classifier=True)
    assert ours.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    close(their_scores(load(tmp_path / "model").float().eval()), expected)


def test_a_classifier_is_no_language_model(classifier, family, tmp_path, smollm2_path):
    _, folder = classifier
    with pytest.raises(InputError, match="ForSequenceClassification' is not supported here"):
        load_pretrained(folder)
    with pytest.raises(InputError, match="has no score head; give a Hugging Face folder"):
        load_pretrained(smollm2_path, classifier=True)
    model, params, tokenizer = family[1]
    with pytest.raises(ValueError, match="load it with classifier=True"):
        sequence_scores(model, params, np.ones((1, 2), np.int32), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="has no output projection"):
        output_weight(load_pretrained(folder, classifier=True)[1])
