"""`jaxalign plan`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jaxalign.commands.common import File, prepare_out
from jaxalign.commands.pages import PageName, load_page
from jaxalign.host.errors import InputError


@dataclass(frozen=True)
class Plan:
    """Find out what a training step takes on a TPU slice, by compiling it without one.

    jaxalign plan alphaalign --preset qwen2.5-7b --topology v5e:4x4

    jaxalign plan alphaalign --preset qwen2.5-7b --topology v5e v5p v6e

    jaxalign plan ascl --preset qwen3-8b --topology v5p:2x2x2 -- --micro-batches 4

    Needs the compiler (pip install -c constraints.txt -e '.[tpu]' in the clone), no TPU and no
    weights; of a model without a preset the hub's config.json. Each topology takes some minutes.
    Flags of the script go behind --.
    """

    page: PageName
    """The experiment."""
    preset: str
    """One of its presets."""
    topology: tuple[str, ...]
    """v5e:4x4, v5p:2x2x2, v6e:4x4 and so on; v5e, v5p or v6e alone: the smallest slice of it that
    the step fits on."""
    mesh: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="DATA FSDP TENSOR")] = None
    """By default the preset's; for another number of devices its tensor, and fsdp for the rest."""
    out: File = None
    """Also write everything to this JSON file."""
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Of the script."""

    def run(self) -> None:
        """Prints the table and writes the file."""
        if self.out is not None:
            prepare_out(self.out)
        from jaxalign.host.progress import progress_bar
        from jaxalign.planning.chips import use_cpu
        from jaxalign.planning.scripts import plans, read_settings

        if not self.topology:
            raise InputError("--topology: name at least one, such as v5e:4x4")
        use_cpu()
        script = load_page(self.page)
        settings = read_settings(script, self.preset, self.flags)
        found: dict[str, Any] = {}
        try:
            with progress_bar(stderr=True) as bar:
                task = bar.add_task("compiling", total=None)
                for topology, plan in plans(script, settings, self.topology, self.mesh):
                    found[topology] = plan
                    bar.update(task, description=f"compiling; {topology} is done")
        finally:  # each takes minutes: what there is is shown, also after Ctrl-C
            if found:
                self._show(settings, found)
        if all(isinstance(plan, str) for plan in found.values()):
            raise InputError("the step fits on none of these; see the table")

    def _show(self, settings: Any, found: dict[str, Any]) -> None:
        from rich.console import Console

        from jaxalign.planning.table import plan_json, plan_table

        completions = settings.rl.completions_per_step
        title = f"{self.page} {self.preset}: one step, {completions} completions"
        Console().print(plan_table(found, title))
        if self.out is not None:
            values = [
                {"topology": topology, "refused": plan}
                if isinstance(plan, str)
                else plan_json(plan, topology, completions=completions)
                for topology, plan in found.items()
            ]
            self.out.write_text(json.dumps(values, indent=1) + "\n")
            print(f"Written: {self.out}")
