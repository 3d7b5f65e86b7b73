"""The text of --help: options in panels, as plain text.

Rich is not used: its tables leave 18 of 80 columns to the descriptions, and loading it takes longer than all else.
"""

import re
from contextvars import ContextVar
from itertools import groupby
from typing import Any

from typer.core import TyperCommand, TyperGroup

COMMAND_PANELS = {  # heading in --help -> its commands, in the order of --help
    "Make labels small": ("pack", "fit", "tune", "relabel"),
    "Read them back": ("unpack", "convert"),
    "Look and check": ("info", "stats", "report", "verify", "compare"),
    "Get started": ("demo", "doctor"),
}
INPUT, RATE, CODEC, TRAINING, OUTPUT, TEXT = "Input", "Rate", "Codec", "Training", "Output", "Language models"
STUDENTS, VIEWS, GENERAL = "Students", "Views", "General"
ORDER = ("Arguments", OUTPUT, RATE, INPUT, CODEC, TRAINING, VIEWS, STUDENTS, "Options", TEXT, GENERAL)  # of panels
LIST = ",..."  # end of the metavar of an option that accepts several numbers: --scale 0.5,1 and --scale 0.5 1
NUMBER = re.compile(r"[\d.,]*\d[\d.,]*")
MAX_OPTION_WIDTH = 24  # of the column of options; longer ones have a line of their own

FLAGS: ContextVar[dict[str, str] | None] = ContextVar("FLAGS", default=None)  # of the running command: parameter -> its option


def panel_of(param: Any) -> str:
    """The heading under which --help lists an argument or option."""
    if param.param_type_name == "argument":
        return "Arguments"
    if "--help" in param.opts:
        return GENERAL
    panel = getattr(param, "rich_help_panel", None)
    return panel if panel in ORDER else "Options"


class Command(TyperCommand):
    """A command whose --help lists options in panels, and whose lists of numbers are separated by blanks or commas."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels of ORDER that have options."""
        params = sorted(self.get_params(ctx), key=lambda param: ORDER.index(panel_of(param)))
        for panel, group in groupby(params, panel_of):
            records = [(param, param.get_help_record(ctx)) for param in group]
            rows = [(_title(param, record[0]), record[1]) for param, record in records if record is not None]
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows, col_max=MAX_OPTION_WIDTH)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the line "Usage", arguments without braces, by which Typer marks required ones."""
        return [re.sub(r"\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the values of options with several numbers by commas: Typer's options take one value each."""
        several = {opt for param in self.params if str(param.metavar or "").endswith(LIST) for opt in param.opts}
        return super().parse_args(ctx, _joined(args, several))

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with its options in FLAGS, by which messages name them."""
        token = FLAGS.set({param.name: max(param.opts, key=len) for param in self.params if param.name})
        try:
            return super().invoke(ctx)
        finally:
            FLAGS.reset(token)


def _title(param: Any, title: str) -> str:
    """The left column of --help: of an argument, its metavar without a type."""
    return param.metavar or title if param.param_type_name == "argument" else title


def _joined(args: list[str], several: set[str]) -> list[str]:
    """["--bits", "8", "16", "dump"] -> ["--bits", "8,16", "dump"], for the options of `several`."""
    joined, expects = list[str](), ""  # what the next word may be: the value of such an option, a further number, or neither
    for word in args:
        if expects == "further" and NUMBER.fullmatch(word):
            joined[-1] = f"{joined[-1].rstrip(',')},{word}"
            continue
        joined.append(word)
        if word in several:
            expects = "value"
        else:
            expects = "further" if expects == "value" or word.partition("=")[0] in several else ""
    return joined


class Group(TyperGroup):
    """The list of commands, in panels; each with the first sentence of its description, never cut."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the panels."""
        order = [name for names in COMMAND_PANELS.values() for name in names]
        return sorted(self.commands, key=lambda name: order.index(name) if name in order else len(order))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a panel for each heading."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        width = max(len(name) for name, _ in commands)
        for panel, group in groupby(commands, lambda item: getattr(item[1], "rich_help_panel", None) or "Others"):
            rows = [(name.ljust(width), command.get_short_help_str(limit=1000)) for name, command in group if not command.hidden]
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows)
