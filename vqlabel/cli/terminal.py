"""What every command does with the terminal: results to stdout, notes and progress to stderr, errors to exit codes."""

import functools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import Any, NoReturn, TextIO

import typer

from vqlabel.errors import VqlabelError, VqlabelWarning, message, printable
from vqlabel.progress import Progress, silent

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
GOES_ON = {  # command -> suffix of what an interrupted run keeps beside its target, and what goes on from there
    "fit": (".state", "the same command with --resume goes on where it was"),
    "relabel": (".journal", "the same command goes on where it was"),
}
_stdout: ContextVar[TextIO] = ContextVar("stdout")  # of the process, while `sys.stdout` is stderr


def exit_with_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that no traceback reaches its user: every refusal becomes a line on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            with _stdout_for_results(), _warnings_as_notes():
                command(*args, **options)
        except VqlabelError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(_interrupted(command.__name__, options.get("out")), INTERRUPTED)
        except BrokenPipeError:  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except MemoryError as error:
            _fail(f"out of memory ({error}); try a smaller dump, --latent or --bits", 1)
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            _fail(f"{name}{error.strerror or error}; check the path, its permissions and the free space", 1)
        except AssertionError as error:  # a torch built for no GPU says so by an assertion
            if "not compiled with" not in str(error):
                raise
            _fail(f"{error}; check --device", 1)
        except RuntimeError as error:  # torch: no such device, out of its memory
            if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps what stops the making of a class, in an import
                _fail(_interrupted(command.__name__, options.get("out")), INTERRUPTED)
            reason = str(error).partition("\n")[0]
            _fail(f"{reason}; check --device", 2 if "device string" in reason else 1)

    return run


def _interrupted(command: str, out: object) -> str:
    """What is left after Ctrl-C."""
    suffix, way = GOES_ON.get(command, ("", ""))
    return "interrupted; nothing half-written was left" + (f"; {way}" if way and os.path.exists(f"{out}{suffix}") else "")


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """What libraries, a teacher's own code and its child processes print while a command runs goes to stderr; stdout is for `emit` alone."""
    with _descriptor_for_results() as results:
        token = _stdout.set(results)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _stdout.reset(token)


@contextmanager
def _descriptor_for_results() -> Iterator[TextIO]:
    """`sys.stdout`; where it is the process's own, a copy of it, while file descriptor 1 is that of stderr."""
    try:
        own = (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (AttributeError, OSError, ValueError):  # some other object in their place, which has none
        own = False
    if not own:
        yield sys.stdout
        return
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    try:
        os.dup2(2, 1)
        yield results
        results.flush()
    finally:
        os.dup2(results.fileno(), 1)
        with suppress(OSError):  # what could not be written has been told by `flush`
            results.close()


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """vqlabel's own warnings as one line each, others as Python shows them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def one_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, VqlabelWarning):
                note(str(message))
            else:
                show(message, category, *place, **more)

        warnings.showwarning = one_line
        yield


def note(sentence: str) -> None:
    """A line on stderr that stops nothing."""
    typer.echo(f"vqlabel: {message(sentence)}", err=True)


def notes(found: dict[str, Any]) -> None:
    """What a result has to say besides figures, on stderr."""
    for sentence in found.get("notes", ()):
        note(sentence)


def report_order_evidence(source: Any) -> Any:
    """A dump, after a line for each of its notes, and on how sure its order of images is where that had to be found out, or that nobody knows it."""
    for sentence in source.notes:
        note(sentence)
    if source.evidence is not None:
        note(source.evidence)
    elif source.order == "none" and source.layout == "sre2l":
        note(f"{source.path}: does not say which image a label is of, so no student can see its view; --images FOLDER finds it out")
    return source


def _fail(message: str, code: int) -> NoReturn:
    note(message)
    raise typer.Exit(code)


def emit(found: dict[str, Any], as_json: bool, human: Callable[[dict[str, Any]], None]) -> None:
    """One JSON object, or what a person reads."""
    with redirect_stdout(_stdout.get(sys.stdout)):
        if as_json:
            typer.echo(json.dumps(found))
        else:
            human(found)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress callback drawn on stderr; silent where that is no terminal, and for anything shorter than a second."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    bars = Bars(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}
    began, shown = time.monotonic(), False

    def update(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        nonlocal shown
        if not shown and time.monotonic() - began > 1:
            bars.start()
            shown = True
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, figures="")
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if name.startswith(("seen", "loss", "kl")))
        bars.update(tasks[stage], completed=done, total=total, figures=text)

    try:
        yield update
    finally:
        if shown:
            bars.stop()


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Columns on stdout, the first to the left and the rest to the right; plain text, so that a pipe gets the same."""
    cells = [header, *(tuple(map(printable, row)) for row in rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        line = [row[0].ljust(wide[0]), *(cell.rjust(width) for cell, width in zip(row[1:], wide[1:], strict=True))]
        typer.echo("  ".join(line).rstrip())


def size(count: float) -> str:
    """Bytes as people read them, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError
