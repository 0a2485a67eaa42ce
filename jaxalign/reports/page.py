"""A report page, which stands alone: pictures are embedded, nothing is loaded, no script runs.

Prompts and completions are hostile text (that is what a safety run is about): the template escapes
every string, `printable` takes out what could hide or reorder text, and the content policy in the
page's head allows nothing but embedded pictures and its own style, should one ever slip by.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from jaxalign.reports.printable import printable, split_answer

Block = Mapping[str, Any]
"""A part of a page, plain data; `page.html.jinja` says which there are."""

Columns = Mapping[str, Callable[[Mapping[str, Any]], object]]
"""Of a table: heading -> what stands below it for an item."""


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, texts: int = 1) -> Block:
    """A table, below `headings` if there are any; its first `texts` columns are words."""
    return {"table": rows, "headings": headings, "texts": texts}


def tabulate(columns: Columns, items: Iterable[Mapping[str, Any]], *, texts: int = 1) -> Block:
    """A table with a row for each item."""
    rows = [[cell(item) for cell in columns.values()] for item in items]
    return table(tuple(columns), rows, texts=texts)


def details(title: str, *blocks: Block) -> Block:
    """Blocks that are shown where a reader asks for them."""
    return {"details": title, "blocks": blocks}


def write_page(path: Path, title: str, blocks: Sequence[Block]) -> Path:
    """Writes a complete HTML document and returns its path; all strings are plain text."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # What has __html__ was made by a macro and is escaped already.
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
    )
    environment.filters |= {"base64": _base64, "split_answer": split_answer}
    source = resources.files("jaxalign.reports") / "page.html.jinja"
    template = environment.from_string(source.read_text(encoding="utf-8"))
    path.write_text(template.render(title=title, blocks=blocks).lstrip(), encoding="utf-8")
    return path


def _base64(picture: Path) -> str:
    return base64.b64encode(picture.read_bytes()).decode("ascii")
