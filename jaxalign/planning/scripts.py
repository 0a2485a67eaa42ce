"""From a script's preset to the plans of its step."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from types import ModuleType

import jax.numpy as jnp

from jaxalign.host.errors import InputError
from jaxalign.models import Transformer
from jaxalign.models.files.architectures import read_architecture
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.sharding import make_mesh
from jaxalign.planning.chips import chip_of, slice_devices
from jaxalign.planning.compiled_step import DoesNotFit, Plan, plan_step
from jaxalign.planning.stand_in import stand_in_tokenizer
from jaxalign.runs.choices import change
from jaxalign.runs.reinforcement import make_reinforcement
from jaxalign.runs.settings import Settings, parse


def read_settings(script: ModuleType, preset: str, flags: Sequence[str]) -> Settings:
    """The settings of a preset with the script's flags on top, checked as a run checks them.

    Completions get rows of their own: where they share some, what a step computes depends on what
    was drawn, and a plan counts completions in full.

    Raises:
      InputError: no such preset, or settings that cannot work.
    """
    name = f"{script.__name__.removeprefix('page.')}.py"
    settings: Settings = parse([preset, *flags], script.PRESETS, script=name, doc=script.__doc__)
    settings.check()
    return settings if settings.rl is None else change(settings, packed=False)


def plans(
    script: ModuleType,
    settings: Settings,
    topologies: Sequence[str],
    mesh: tuple[int, int, int] | None,
) -> Iterator[tuple[str, Plan | str]]:
    """Compiles the step of an experiment, which has `PRESETS` and `build`, for each topology.

    A topology is such as `v5e:4x4`; a generation alone stands for its slices, small ones first,
    until the step fits. The mesh, (data, fsdp, tensor), is by default the settings', and where that
    is for another number of devices its tensor, and fsdp for the rest.

    Yields:
      topology and plan, or why there is none.

    Raises:
      InputError: a topology or a mesh for it that cannot be, before anything is compiled.
    """
    settings.check_plan()
    config = read_architecture(settings.start.model)

    def place(topology: str) -> tuple[Settings, Transformer]:
        devices = slice_devices(topology)
        sizes = mesh or _mesh_of(settings, len(devices))
        placed = change(settings, mesh=sizes, stop=())  # the stand-in has no names
        on = make_mesh(*sizes, devices=devices)
        if placed.rl is not None:
            placed.rl.check_with(placed)
        parameter_shardings(config, on)
        dtype = jnp.bfloat16 if settings.start.dtype == "auto" else jnp.dtype(settings.start.dtype)
        model = Transformer(config, dtype=dtype, remat=settings.start.remat, mesh=on)
        return placed, model.clone(lora=settings.learning.lora)

    for topology in topologies:
        chip_of(topology)
        if ":" in topology:
            place(topology)
    prompts = settings.load_prompts()
    tokenizer = stand_in_tokenizer(config.vocab_size)
    config = dataclasses.replace(config, eos_token_id=tokenizer.eos_token_id)  # not one more
    for asked in topologies:
        whole = [f"{asked}:{shape}" for shape in chip_of(asked).slices]
        for topology in [asked] if ":" in asked else whole:
            try:
                placed, model = place(topology)
            except InputError as error:
                yield topology, str(error)
                continue
            recipe = script.build(placed, model, tokenizer, prompts)
            work = make_reinforcement(placed, model, tokenizer, prompts, recipe)
            try:
                batch = work.batches.encode(work.batches.prompts_at(0))
                plan = plan_step(work, model, batch)
            except DoesNotFit as error:
                yield topology, f"does not fit: {error}; raise --micro-batches, or --mesh's tensor"
                continue
            yield topology, plan
            break


def _mesh_of(settings: Settings, devices: int) -> tuple[int, int, int]:
    if settings.start.mesh and math.prod(settings.start.mesh) == devices:
        return settings.start.mesh
    tensor = min(settings.start.mesh[2] if settings.start.mesh else 1, devices)
    return 1, devices // tensor, tensor
