"""Every refusal of vqlabel: one family, each with the exit code that the command line returns."""

MESSAGE_CHARACTERS = 2000  # of a message: what it quotes from a file may have any length


def printable(text: str) -> str:
    """Control characters, line feeds among them, and invisible ones as escapes: names and values of a hostile file must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def message(text: str) -> str:
    """Printable, and cut in the middle where it is longer than MESSAGE_CHARACTERS: it begins with what and where and ends with the remedy."""
    if len(text) > MESSAGE_CHARACTERS:
        first, last = text[: MESSAGE_CHARACTERS * 3 // 4], text[-MESSAGE_CHARACTERS // 4 :]
        text = f"{first} [... {len(text) - len(first) - len(last):,} characters ...] {last}"
    return printable(text)


class VqlabelError(Exception):
    """Base of all refusals. The message says what, where, the value, the limit and the remedy."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(message(arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(VqlabelError):
    """The request contradicts itself or its input: an option's value, a codec for another number of classes."""

    exit_code = 2


class WrongType(UsageError, TypeError):
    """An argument or a field is of a type that cannot be taken, or a call has an argument too many or too few."""


class NoSuchFile(UsageError, FileNotFoundError):
    """A file or folder that was named to be read is not there."""

    def __str__(self) -> str:  # OSError's own looks for an errno
        return str(self.args[0])


class MissingExtra(VqlabelError):
    """An optional package is needed and not installed."""

    exit_code = 1

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"this needs {package}, which is not installed; run: pip install 'vqlabel[{extra}]'")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.package, self.extra)


class BadInput(VqlabelError):
    """A file is malformed, corrupt or hostile: nothing of it is used."""

    exit_code = 3


class BadLabels(BadInput):
    """A dump of labels cannot be used: empty, NaN or Inf, another number of classes, another domain."""


class BadContainer(BadInput):
    """A `.vql` or codec file breaks docs/format.md: truncated, altered, foreign or from a newer version."""


class CodeOutOfRange(BadInput):
    """An integer does not fit the width or the codebook that it was given."""


class TargetExists(VqlabelError):
    """The target is there already and --overwrite was not given."""

    exit_code = 4


class VqlabelWarning(UserWarning):
    """Something failed that the result does not depend on; the command line prints it to stderr as a note."""


def require(ok: object, field: str, got: object, want: str, error: type[VqlabelError] = UsageError) -> None:
    """Raise `error` with "field is got; want" unless `ok`.

    `want` reads as the limit and the remedy, e.g. "must be 1..16".
    """
    if not ok:
        raise error(f"{field} is {got!r}; it {want}")
