"""Terminal behaviour of all commands: results on stdout, notes and progress on stderr, errors as exit codes."""

import functools
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from vqlabel.cli.flags import named_by_flags
from vqlabel.cli.help import FLAGS, GENERAL
from vqlabel.cli.progress import Bars, Lines
from vqlabel.errors import UsageError, VqlabelError, VqlabelWarning, message, printable
from vqlabel.progress import Progress, silent
from vqlabel.version import __version__

INTERRUPTED = 130  # exit code after Ctrl-C, by the convention of shells: 128 + SIGINT
RESUMABLE = (".state", ".journal")  # suffixes of what an interrupted run leaves beside its output to continue from
_stdout: ContextVar[TextIO] = ContextVar("stdout")  # the process's stdout, while `sys.stdout` is redirected to stderr
_verbosity: ContextVar[int] = ContextVar("_verbosity", default=0)  # -1: errors only; 0: notes, too; 1: more
_progress: ContextVar[str] = ContextVar("_progress", default="auto")
PROGRESS = ("auto", "bar", "plain", "off")
SHORT = ("info", "doctor", "verify")  # commands without progress
OPTIONS_OF_ALL: dict[str, Any] = {
    "quiet": Annotated[
        bool, typer.Option("-q", "--quiet", help="print errors only: no notes, no progress", rich_help_panel=GENERAL)
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="print more: progress every 10 seconds, the time taken, and where an error arose",
            rich_help_panel=GENERAL,
        ),
    ],
    "progress": Annotated[
        str,
        typer.Option(
            metavar="HOW", envvar="VQLABEL_PROGRESS", show_envvar=False, rich_help_panel=GENERAL,
            help="bar, plain (a line per phase and per minute, for log files) or off; auto: bar on a terminal, otherwise plain. Also set by "
            "the environment variable VQLABEL_PROGRESS",
        ),
    ],
}  # fmt: skip


def exit_with_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that errors become one line on stderr and an exit code, instead of a traceback, and add
    the options of OPTIONS_OF_ALL to its own.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        how = {name: options.pop(name, None) for name in OPTIONS_OF_ALL}
        settings = _verbosity.set(how["verbose"] - how["quiet"]), _progress.set(how["progress"] or "auto")
        started = time.monotonic()
        try:
            _check_general_options(how, options)
            with _stdout_for_results(), _warnings_as_notes():
                command(*args, **options)
            if how["verbose"]:
                note(f"{command.__name__}, vqlabel {__version__}: {time.monotonic() - started:.1f} s")
        except typer.Exit:  # a RuntimeError; with the exit code of several files
            raise
        except VqlabelError as error:
            flags = FLAGS.get() or {} if isinstance(error, UsageError) else {}  # other errors quote fields of files
            _fail(named_by_flags(str(error), flags), error.exit_code)
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
        finally:
            _verbosity.reset(settings[0])
            _progress.reset(settings[1])

    return _with_general_options(run, command)


def _with_general_options(run: Callable[..., None], command: Callable[..., None]) -> Callable[..., None]:
    """`run` with the signature of `command` and the options of OPTIONS_OF_ALL."""
    signature = inspect.signature(command)
    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(p.name, p.annotation))
        for p in signature.parameters.values()
    ]
    defaults: dict[str, Any] = {"quiet": False, "verbose": False, "progress": "auto"}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
        for name, annotation in OPTIONS_OF_ALL.items()
        if name != "progress" or command.__name__ not in SHORT
    ]
    del run.__wrapped__  # type: ignore[attr-defined]  # typer would read the signature and type hints of the wrapped function
    parameters = [*(p for p in own if p.default is p.empty), *(p for p in own if p.default is not p.empty), *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _check_general_options(how: dict[str, Any], options: dict[str, Any]) -> None:
    """Raises UsageError for --progress of another word, -q with -v, and "-" where a path is expected."""
    if how["progress"] not in (None, *PROGRESS):
        raise UsageError(f"--progress {how['progress']}: must be one of {', '.join(PROGRESS)}")
    if how["quiet"] and how["verbose"]:
        raise UsageError("-q and -v contradict each other; pass one of them")
    for name, value in options.items():
        if value == Path("-"):
            flag = (FLAGS.get() or {}).get(name, name)
            raise UsageError(
                f"{flag} -: standard input and output cannot be used here, as files are read and written in parts; name a file"
            )


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
    """Print one line on stderr, unless -q was given."""
    if _verbosity.get() >= 0:
        _error_line(sentence)


def _error_line(sentence: str) -> None:
    typer.echo(f"vqlabel: {message(sentence)}", err=True)


def line(text: str) -> None:
    """Print an interim result on stderr, unless -q was given."""
    if _verbosity.get() >= 0:
        typer.echo(text, err=True)


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
    if _verbosity.get() > 0 and code != INTERRUPTED:
        typer.echo(traceback.format_exc(), err=True, nl=False)
    _error_line(message)
    raise typer.Exit(code)


def emit(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result on stdout: as one JSON object, or as the text of `show`."""
    with redirect_stdout(_stdout.get(sys.stdout)):
        if as_json:
            typer.echo(json.dumps(result))
        else:
            show(result)


def for_each(
    paths: Sequence[Path],
    describe: Callable[[Path], dict[str, Any]],
    as_json: bool,
    show: Callable[[Any], None],
) -> None:
    """Print the result of a function for each file; "-" is standard input.

    Of several files, --json prints one object with the list "files". Errors do not end the command but are printed, and
    listed as "error"; the exit code is then the highest of the errors.
    """
    with _standard_input(paths) as copies:
        if len(paths) == 1:
            emit({**describe(copies[0]), "path": str(paths[0])}, as_json, show)
            return
        results, code = list[dict[str, Any]](), 0
        for path, copy in zip(paths, copies, strict=True):
            try:
                result = {**describe(copy), "path": str(path)}
            except VqlabelError as error:
                _error_line(str(error))
                results.append({"path": str(path), "error": str(error), "exit_code": error.exit_code})
                code = max(code, error.exit_code)
                continue
            results.append(result)
            if not as_json:
                emit(result, False, show)
        if as_json:
            emit({"files": results}, True, show)
    if code:
        raise typer.Exit(code)


@contextmanager
def _standard_input(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The paths, with a temporary copy of standard input in the place of "-"."""
    if Path("-") not in paths:
        yield list(paths)
        return
    if paths.count(Path("-")) > 1:
        raise UsageError("-: standard input can be read once only; name it once")
    if sys.stdin.isatty():
        raise UsageError("-: standard input is a terminal; redirect a file to it, as in: vqlabel info - < labels.vql")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "stdin.vql"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield [copy if path == Path("-") else path for path in paths]


def fail_if_missed(result: dict[str, Any]) -> None:
    """Raises VqlabelError, for exit code 1, if a search missed its goal; its nearest result was written and shown."""
    if "missed" in result:
        raise VqlabelError(result["missed"])


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback that shows progress on stderr as --progress says; silent in the first second."""
    how = "off" if _verbosity.get() < 0 else _progress.get()
    if how == "off":
        yield silent
        return
    is_bar = how == "bar" or (how == "auto" and sys.stderr.isatty())
    with Bars() if is_bar else Lines(interval=10 if _verbosity.get() > 0 else 60) as update:
        yield update


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
