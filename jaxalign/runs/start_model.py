"""The model that a run starts from."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.processes import all_of, any_of
from jaxalign.models import Transformer, load_pretrained
from jaxalign.models.completion import compute_params
from jaxalign.models.layout import place_adapter
from jaxalign.models.lora import init_adapter, on_base
from jaxalign.models.precision import fastest_dtype
from jaxalign.models.quantised import quantise
from jaxalign.models.sharding import make_mesh
from jaxalign.records import Params
from jaxalign.runs.settings import Settings
from jaxalign.sampling import Stage, stage_key


def load_start(settings: Settings) -> tuple[Transformer, Params, Any]:
    """The start model in the compute dtype, on the mesh, its parameters and its tokenizer.

    The dtype is the one asked for; of a resumed run, the one it had; else the faster in a probe.
    The date of the chat template is the one asked for, the run's, or today's.

    Raises:
      InputError: as `load_pretrained`, or a mesh of another number of devices than there are.
    """
    mesh = None if settings.start.mesh is None else make_mesh(*settings.start.mesh)
    dtype: Any = settings.start.dtype
    config = settings.run / "config.json"
    resumed = all_of(settings.resume and config.exists())
    theirs = read_json(config) if resumed else {}
    if dtype != "auto":
        reason = f"{dtype}, as asked for"
    elif resumed:
        dtype = theirs["facts"]["compute_dtype"]
        reason = f"{dtype}, as before"
    else:
        dtype, reason = fastest_dtype()
        if any_of(dtype == jnp.float32) and dtype != jnp.float32:
            dtype, reason = jnp.float32, "float32: another process chose it"
    print(f"compute dtype: {reason}")
    model, params, tokenizer = load_pretrained(
        settings.start.model,
        dtype=jnp.dtype(dtype),
        remat=settings.start.remat,
        mesh=mesh,
        chat_template=settings.start.chat_template,
        template_date=settings.start.template_date or theirs.get("template_date"),
    )
    return model.clone(lora=settings.learning.lora), params, tokenizer


def frozen_base(model: Transformer, params: Params) -> Params:
    """The parameters as adapters stand on them: in the compute dtype, or quantised."""
    quantised = quantise(params) if model.lora.base == "int8" else params
    return compute_params(quantised, model.dtype)


def start_policy(settings: Settings, model: Transformer, params: Params) -> Params:
    """What runs when training starts: the parameters in their dtype, or a new adapter on them."""
    if settings.learning.param_dtype != "float32":
        return compute_params(params, settings.learning.param_dtype, learned=True)
    if not model.lora.rank:
        return params
    key = stage_key(settings.seed, Stage.ADAPTERS)
    return on_base(place_adapter(model, init_adapter(model.config, model.lora, key)), params)


@contextlib.contextmanager
def tokenizer_of(model: str) -> Iterator[None]:
    """Within it what a tokenizer can't do is an `InputError` that names the model."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{model}: {error}") from error
