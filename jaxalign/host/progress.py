"""The progress bar of long work, for people: it shows on a terminal and nowhere else."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*, stderr: bool = False) -> Progress:
    """A bar with a count and the time left; a context manager, silent where no terminal is."""
    console = Console(stderr=stderr)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
