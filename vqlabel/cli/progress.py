"""Progress of long commands on stderr: bars on a terminal, lines in a log file. Both are silent in the first second."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import typer

QUIET_SECONDS = 1  # before anything is shown, so that short commands are silent
STAGE_SECONDS = 5  # between the lines of two stages
TICK_SECONDS = 0.5  # between two looks at the state
SHOWN = ("train", "loss", "kl")  # starts of the names of figures that are shown


def _figures(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name.startswith(SHOWN))


class Lines:
    """A `Progress` callback that prints a line for each stage, and one each `interval` seconds.

    A thread prints them, since a stage may report nothing for long. Stages that follow within STAGE_SECONDS of a line
    have none, so that a search with many short stages does not fill a log file.
    """

    def __init__(self, interval: float) -> None:
        self._interval, self._started = interval, time.monotonic()
        self._state: tuple[str, int, int, dict[str, float]] | None = None  # stage, done, total, figures
        self._printed: tuple[str, float] | None = None  # stage and time of the last line
        self._stop = threading.Event()

    def __call__(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        """Record the state for the next line."""
        self._state = (stage, done, total, figures)

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()

    def _run(self) -> None:
        wait: float = QUIET_SECONDS
        while not self._stop.wait(wait):
            wait = min(TICK_SECONDS, self._interval)
            if (text := self.due(time.monotonic())) is not None:
                typer.echo(text, err=True)

    def due(self, now: float) -> str | None:
        """The line to print at the time `now`; None: none is due."""
        if self._state is None:
            return None
        stage, done, total, figures = self._state
        if self._printed is not None:
            last_stage, last = self._printed
            if now - last < (self._interval if stage == last_stage else min(STAGE_SECONDS, self._interval)):
                return None
        self._printed = (stage, now)
        minutes, seconds = divmod(int(now - self._started), 60)
        clock = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        return "  ".join(filter(None, (f"vqlabel: {clock}", f"{stage} {done:,}/{total:,}", _figures(figures))))


class Bars:
    """A `Progress` callback that draws a bar for each stage."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, Any] = {}
        self._started, self._is_shown = time.monotonic(), False
        return self

    def __call__(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        """Move the bar of a stage."""
        if not self._is_shown and time.monotonic() - self._started > QUIET_SECONDS:
            self._bars.start()
            self._is_shown = True
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, figures="")
        self._bars.update(self._tasks[stage], completed=done, total=total, figures=_figures(figures))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_shown:
            self._bars.stop()
