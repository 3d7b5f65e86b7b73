"""The command line: each command parses, makes one public call, and shows what it gave."""

import signal
from typing import NoReturn

# isort: off
from vqlabel.cli import make, read, measure  # noqa: F401  (each registers its commands, in the order of --help)

# isort: on
from vqlabel.cli.app import app


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. Not Python's own: one of those that passes through an `exec` on its way, as torch's lazy imports are full of,
    makes the interpreter kill itself at its end (exit code -2) although the command caught it and said what to do."""


def _interrupt(*_: object) -> NoReturn:
    raise Interrupted


def main() -> None:
    """Run the command line; exits with 0 ok, 1 failed, 2 usage, 3 malformed input, 4 the target exists, 130 Ctrl-C."""
    signal.signal(signal.SIGINT, _interrupt)
    app()


__all__ = ["app", "main"]
