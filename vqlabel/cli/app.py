"""The application that the commands register with."""

import typer

app = typer.Typer(
    help="Teacher labels in a few bits each: fit a codec, pack a dump into a .vql file, read it back, account for every bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
