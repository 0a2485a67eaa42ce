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


def roughly(seconds: float) -> str:
    """A time in words: "less than a minute", "about 11 min", "about 2 h 10 min"."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min" if minutes else "less than a minute"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"about {hours} h {rest} min" if rest else f"about {hours} h"


class Outlook:
    """How long counted work will take, said once, for a log that no bar shows in.

    The pace is that of the second batch, because the first one compiles.
    """

    def __init__(self) -> None:
        self._reports: list[tuple[int, float]] = []

    def seconds_left(self, done: int, total: int | None, now: float) -> float | None:
        """What is left after the second batch; None after the others.

        Args:
          done: how much is; the first call comes before any batch, each further one after one.
          total: how much there is; None where that is not known.
          now: seconds of any clock.
        """
        self._reports.append((done, now))
        if len(self._reports) != 3 or total is None:
            return None
        (_, _), (before, begun), _ = self._reports
        return (total - done) * (now - begun) / max(done - before, 1)
