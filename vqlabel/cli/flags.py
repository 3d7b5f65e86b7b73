"""Names of fields in messages -> the flags that a user typed."""

import re
from collections.abc import Mapping


def named_by_flags(message: str, flags: Mapping[str, str]) -> str:
    """Name the options of a command by their flags: "code_width is 3; it must be ..." -> "--code-width is 3; ...".

    Args:
        message: of an error, which names fields of the Python interface: before " is " at its start, or with an
            underscore anywhere outside of paths.
        flags: name of a parameter -> its option; names of arguments do not start with "-".
    """
    options = {name: flag for name, flag in flags.items() if flag.startswith("--")}

    def replace(match: re.Match[str]) -> str:
        name = match[0]
        is_field = "_" in name or (match.start() == 0 and message[match.end() :].startswith(" is "))
        return options[name] if is_field and name in options else name

    return re.sub(r"(?<![\w./:'\"-])[a-z]\w*(?![\w./'\"-])", replace, message)
