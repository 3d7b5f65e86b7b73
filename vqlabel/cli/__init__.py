"""The command line: each command parses its options, makes one public call and shows the result."""

import signal
from typing import NoReturn

# isort: off
from vqlabel.cli import fit, pack, relabel, read, measure, report, doctor  # noqa: F401  (each registers its commands, in the order of --help)

# isort: on
from vqlabel.cli.app import app


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, as a class of its own.

    If a plain KeyboardInterrupt passes through an `exec`, such as those in torch's lazy imports, the interpreter kills
    itself at exit (exit code -2), even though the command has caught it.
    """


def _interrupt(*_: object) -> NoReturn:
    raise Interrupted


def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 1 failure, 2 usage error, 3 malformed input, 4 the target exists, 130 interrupted by Ctrl-C.
    """
    signal.signal(signal.SIGINT, _interrupt)
    app()


__all__ = ["app", "main"]
