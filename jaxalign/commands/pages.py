"""Experiments by name or by path: a page is a Python file with `PRESETS` and `build`."""

import ast
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro

from jaxalign.host.errors import InputError

PageName = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME|FILE.py")]


def named_pages() -> dict[str, Path]:
    """The pages of experiments/ by name; a wheel carries them as jaxalign/experiments."""
    package = Path(__file__).parents[1]
    carried = package / "experiments"
    folder = carried if carried.is_dir() else package.parent / "experiments"
    return {
        path.stem: path for path in sorted(folder.glob("*.py")) if "\nPRESETS" in path.read_text()
    }


def describe_pages() -> str:
    """A line for each: its name, and what it says of itself first."""
    texts = {name: path.read_text() for name, path in named_pages().items()}
    about = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return "\n".join(f"{name}: {text.partition(chr(10))[0]}" for name, text in about.items())


def _is_none(preset: object) -> bool:
    from jaxalign.runs.settings import Settings

    return not isinstance(preset, Settings)


def load_page(page: str) -> ModuleType:
    """An experiment as a module, `page.NAME`.

    Args:
      page: the name of one of `named_pages`, or the path of a Python file.

    Raises:
      InputError: no such page, one that cannot be imported, or one without `PRESETS` and `build`.
    """
    from jaxalign.host.user_functions import load_module

    pages, path = named_pages(), Path(page)
    if path.suffix != ".py":
        if page not in pages:
            known = ", ".join(pages)
            raise InputError(f"no page is called {page!r}: use one of {known}, or give a FILE.py")
        path = pages[page]
    if not path.is_file():
        raise InputError(f"{page}: no such file; give one that is there, or the name of a page")
    module = load_module(path, f"page.{path.stem}", f"{path}:")
    if missing := [name for name in ("PRESETS", "build") if not hasattr(module, name)]:
        raise InputError(f"{path}: has no {', '.join(missing)}; see docs/your-own-method.md")
    presets = module.PRESETS
    if not isinstance(presets, dict) or not presets or any(map(_is_none, presets.values())):
        raise InputError(
            f"{path}: PRESETS must give settings by name, objects of a subclass of "
            "jaxalign.runs.settings.Settings; see docs/your-own-method.md"
        )
    return module
