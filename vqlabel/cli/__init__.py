"""The command line: each command parses, makes one public call, and shows what it gave."""

from vqlabel.cli.commands import app


def main() -> None:
    """Run the command line; exits with 0 ok, 1 failed, 2 usage, 3 malformed input, 4 refused."""
    app()


__all__ = ["app", "main"]
