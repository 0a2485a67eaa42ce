"""From a script's preset to the plans of its step."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models import Transformer
from jaxalign.models.architectures import read_architecture
from jaxalign.models.sharding import make_mesh
from jaxalign.planning.chips import chip_of, slice_devices
from jaxalign.planning.plan import DoesNotFit, Plan, plan_step
from jaxalign.planning.stand_in import stand_in_tokenizer
from jaxalign.training.settings import Settings, check_mesh, parse


def load_script(path: Path) -> ModuleType:
    """An experiment as a module.

    Raises:
      InputError: no such file, or it has no `PRESETS` and `prepare`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such script; give one such as experiments/alphaalign.py")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file; give one such as experiments/alphaalign.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not (hasattr(module, "PRESETS") and hasattr(module, "prepare")):
        raise InputError(
            f"{path}: has no PRESETS and prepare(settings, model, tokenizer); see "
            "experiments/alphaalign.py"
        )
    return module


def read_settings(script: ModuleType, preset: str, flags: Sequence[str]) -> Settings:
    """The settings of a preset with the script's flags on top."""
    settings: Settings = parse(
        [preset, *flags], script.PRESETS, script=f"{script.__name__}.py", doc=script.__doc__ or ""
    )
    return settings


def plans(
    script: ModuleType,
    settings: Settings,
    topologies: Sequence[str],
    mesh: tuple[int, int, int] | None,
) -> Iterator[tuple[str, Plan | str]]:
    """Compiles the step for one topology after the other.

    Args:
      script: from `load_script`.
      settings: the run's.
      topologies: such as `v5e:4x4`; a generation alone stands for its slices, small ones first,
        until the step fits.
      mesh: data, fsdp and tensor; by default the settings' tensor, and fsdp for the rest.

    Yields:
      topology and plan, or why there is none.
    """
    config = read_architecture(settings.model)
    tokenizer = stand_in_tokenizer(config.vocab_size)
    for asked in topologies:
        chip = chip_of(asked)
        slices = [asked] if ":" in asked else [f"{asked}:{shape}" for shape in chip.slices]
        for topology in slices:
            devices = slice_devices(topology)
            sizes = mesh or _mesh_of(settings, len(devices))
            placed = dataclasses.replace(settings, mesh=sizes)
            try:
                check_mesh(placed)
                model = Transformer(
                    config,
                    dtype=jnp.bfloat16 if settings.dtype == "auto" else jnp.dtype(settings.dtype),
                    remat=settings.remat,
                    mesh=make_mesh(*sizes, devices=devices),
                )
                work = script.prepare(placed, model, tokenizer)
                yield topology, plan_step(work, model, work.batches(0), devices)
                break
            except DoesNotFit as error:
                yield topology, f"does not fit: {error}"
            except InputError:
                if len(slices) == 1:
                    raise
                yield topology, "mesh does not divide"


def _mesh_of(settings: Settings, devices: int) -> tuple[int, int, int]:
    tensor = min(settings.mesh[2] if settings.mesh else 1, devices)
    return 1, devices // tensor, tensor
