"""The Typer application, with which the modules of commands register."""

import typer

app = typer.Typer(
    help="Compress a teacher's soft labels to a few bits per label: fit a codec, pack a dump into a .vql file, decode it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
