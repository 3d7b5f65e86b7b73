"""Terminal behaviour of all commands: results on stdout, notes and progress on stderr, errors as exit codes."""

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

INTERRUPTED = 130  # exit code after Ctrl-C, by the convention of shells: 128 + SIGINT
RESUMABLE = (".state", ".journal")  # suffixes of what an interrupted run leaves beside its output to continue from
_stdout: ContextVar[TextIO] = ContextVar("stdout")  # the process's stdout, while `sys.stdout` is redirected to stderr


def exit_with_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that errors become one line on stderr and an exit code, instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            with _stdout_for_results(), _warnings_as_notes():
                command(*args, **options)
        except VqlabelError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(_interrupted(options.get("out")), INTERRUPTED)
        except BrokenPipeError:  # the reader of stdout has closed the pipe, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except MemoryError as error:
            _fail(f"out of memory ({error}); use a smaller dump, --latent or --bits", 1)
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            _fail(f"{name}{error.strerror or error}; check the path, its permissions and the free space", 1)
        except AssertionError as error:  # raised by a torch that was built without CUDA
            if "not compiled with" not in str(error):
                raise
            _fail(f"{error}; check --device", 1)
        except RuntimeError as error:  # raised by torch: no such device, or device out of memory
            if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps errors raised while a class is created
                _fail(_interrupted(options.get("out")), INTERRUPTED)
            reason = str(error).partition("\n")[0]
            _fail(f"{reason}; check --device", 2 if "device string" in reason else 1)

    return run


def _interrupted(out: object) -> str:
    """The message after Ctrl-C."""
    is_resumable = out is not None and any(os.path.exists(f"{out}{suffix}") for suffix in RESUMABLE)
    return "interrupted; no partial output was left" + ("; run the same command to continue" if is_resumable else "")


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """Reserve stdout for `emit`: output of libraries, of a teacher's code and of child processes goes to stderr."""
    with _descriptor_for_results() as results:
        token = _stdout.set(results)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _stdout.reset(token)


@contextmanager
def _descriptor_for_results() -> Iterator[TextIO]:
    """A stream for results: `sys.stdout`, or, if that is file descriptor 1, a duplicate of it.

    The duplicate serves while descriptor 1 is redirected to stderr.
    """
    try:
        are_descriptors = (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)
    except (AttributeError, OSError, ValueError):  # replaced by an object without a file descriptor
        are_descriptors = False
    if not are_descriptors:
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
        with suppress(OSError):  # `flush` has already raised for unwritten output
            results.close()


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Print vqlabel's own warnings as notes, others in Python's format."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_note(message: Warning | str, category: type[Warning], *location: Any, **options: Any) -> None:
            if issubclass(category, VqlabelWarning):
                note(str(message))
            else:
                show(message, category, *location, **options)

        warnings.showwarning = show_note
        yield


def note(sentence: str) -> None:
    """Print one line on stderr."""
    typer.echo(f"vqlabel: {message(sentence)}", err=True)


def notes(result: dict[str, Any]) -> None:
    """Print the notes of a result on stderr."""
    for sentence in result.get("notes", ()):
        note(sentence)


def report_order_evidence(source: Any) -> Any:
    """Print the notes of a dump, and the evidence for its order of images if that was inferred; return the dump."""
    for sentence in source.notes:
        note(sentence)
    if source.evidence is not None:
        note(source.evidence)
    elif source.order == "none" and source.layout == "sre2l":
        note(f"{source.path}: does not record the image of each label, so its views cannot be rendered; --images FOLDER infers it")
    return source


def _fail(message: str, code: int) -> NoReturn:
    note(message)
    raise typer.Exit(code)


def emit(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result on stdout: as one JSON object, or as the text of `show`."""
    with redirect_stdout(_stdout.get(sys.stdout)):
        if as_json:
            typer.echo(json.dumps(result))
        else:
            show(result)


def fail_if_missed(result: dict[str, Any]) -> None:
    """Raises VqlabelError, for exit code 1, if a search missed its goal; its nearest result was written and shown."""
    if "missed" in result:
        raise VqlabelError(result["missed"])


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback that draws progress bars on stderr; silent in the first second, and if stderr is not a terminal."""
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
    started, is_shown = time.monotonic(), False

    def update(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        nonlocal is_shown
        if not is_shown and time.monotonic() - started > 1:
            bars.start()
            is_shown = True
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, figures="")
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if name.startswith(("train", "loss", "kl")))
        bars.update(tasks[stage], completed=done, total=total, figures=text)

    try:
        yield update
    finally:
        if is_shown:
            bars.stop()


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Print columns on stdout, the first left-aligned, the others right-aligned; plain text, also in a terminal."""
    cells = [header, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        line = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        typer.echo("  ".join(line).rstrip())


def size(count: float) -> str:
    """A number of bytes in a decimal unit: 4500 -> "4.50 kB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError
