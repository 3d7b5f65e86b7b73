"""The Typer application, with which the modules of commands register."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from vqlabel.cli.help import COMMAND_PANELS, Command, Group
from vqlabel.version import __version__


class App(typer.Typer):
    """A Typer application whose commands are `Command`s in the panel that COMMAND_PANELS names."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # type: ignore[override]
        """Register a command, see `typer.Typer.command`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            called = name or function.__name__
            panel = next((title for title, names in COMMAND_PANELS.items() if called in names), "Others")
            return typer.Typer.command(self, name, **{"cls": Command, "rich_help_panel": panel, **options})(function)

        return register


app = App(
    cls=Group,
    help="Compress a teacher's soft labels to a few bits per label: fit a codec, pack a dump into a .vql file, decode it, measure it.",
    epilog="vqlabel COMMAND --help lists the options of a command. Start with: vqlabel pack DUMP -o labels.vql --ratio 500. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 damaged input, 4 the output exists, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"vqlabel {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the name of a command."""
