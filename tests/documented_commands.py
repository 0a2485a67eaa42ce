"""The shell commands of documents and docstrings, read out of the text itself.

In Markdown and in a script's docstring commands stand in blocks, indented or fenced; a fence that
names another language than a shell's has none. Whole commands in backticks count too. The commands
of `jaxalign` show theirs in the docstrings of their classes, a paragraph each.
"""

import ast
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELLS = ("", "bash", "console", "sh", "shell")
SCRIPTS = ("experiments/*.py", "experiments/ablations/*.py", "experiments/benchmarks/*.py")
PROGRAMS = ("jaxalign", "python", "make", "pip")
"""What a command in backticks begins with; and in blocks, beside what a shell would find."""

# In backticks: commands that are spoken of, without all that they need.
_MENTIONED = ("jaxalign generate --prompts", "jaxalign train mine.py")

# A place for a word of the reader's own, such as FILE or …, of which no command is made here.
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|…")


@dataclass(frozen=True)
class Command:
    """One command, as a shell would cut it into words, and the file that it stands in."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def documented_commands() -> list[Command]:
    """Those of README, docs, the scripts' docstrings and the help of `jaxalign`, each once a file.

    Raises:
      ValueError: a quotation that does not end; names the file and the line.
    """
    found = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]:
        text = path.read_text()
        found += [_command(path, line) for line in [*_block_lines(text), *_spans(text)]]
    for path in sorted(x for pattern in SCRIPTS for x in ROOT.glob(pattern)):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found += [_command(path, line) for line in _block_lines(text)]
    for path in sorted(ROOT.glob("jaxalign/commands/*.py")):
        found += [_command(path, line) for line in _paragraphs(ast.parse(path.read_text()))]
    return list(dict.fromkeys(found))


def _command(path: Path, line: str) -> Command:
    name = path.relative_to(ROOT).as_posix()
    try:
        return Command(name, tuple(shlex.split(line, comments=True)))
    except ValueError as error:
        raise ValueError(f"{name}: {line}: {error}") from None


def _block_lines(text: str) -> Iterator[str]:
    """The lines of blocks of commands, those that end with a backslash with the next one."""
    for block, is_fenced in _blocks(text):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        if lines and (is_fenced or _is_program(lines[0].split()[0])):
            yield from (line.strip() for line in lines if line.strip())


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Blocks that may hold commands, and whether each is fenced: then it must."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    for language, block in fence.findall(text):
        if language in SHELLS:
            yield block, True
    for block in re.findall(r"(?:\A|\n\n)((?: {4}.*(?:\n|\Z))+)", fence.sub("", text)):
        yield inspect.cleandoc(block), False


def _is_program(word: str) -> bool:
    return word in PROGRAMS or shutil.which(word) is not None


def _spans(text: str) -> Iterator[str]:
    """Commands in backticks that are whole: of two words and more, of `jaxalign` three."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        words = span.split()
        line = " ".join(words)
        is_whole = len(words) > (2 if words[:1] == ["jaxalign"] else 1)
        if words and words[0] in PROGRAMS and is_whole and not _PLACEHOLDER.search(line):
            if line not in _MENTIONED:
                yield line


def _paragraphs(tree: ast.Module) -> Iterator[str]:
    """Of classes: paragraphs that begin with `jaxalign`, up to a remark behind a gap."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                if paragraph.startswith("jaxalign "):
                    yield " ".join(re.split(r" {2,}", paragraph)[0].split())
