"""All errors of vqlabel: one family of exceptions, each with the exit code that the command line returns."""

MAX_MESSAGE = 2000  # characters of a message; what it quotes from a file may have any length


def printable(text: str) -> str:
    """`text` with control and invisible characters (line feeds, too) as escapes: a hostile file must not control a
    terminal.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def message(text: str) -> str:
    """`text` made printable, and cut in the middle to MAX_MESSAGE characters: its start has the cause, its end the
    remedy.
    """
    if len(text) > MAX_MESSAGE:
        first, last = text[: MAX_MESSAGE * 3 // 4], text[-MAX_MESSAGE // 4 :]
        text = f"{first} [... {len(text) - len(first) - len(last):,} characters ...] {last}"
    return printable(text)


class VqlabelError(Exception):
    """Base of all errors. A message names the cause, the place, the value, the limit and the remedy."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(message(arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(VqlabelError):
    """The request contradicts itself or its input: an option out of range, a codec for another number of classes."""

    exit_code = 2


class WrongType(UsageError, TypeError):
    """An argument or a field has the wrong type, or a call has an unknown or a missing argument."""


class NoSuchFile(UsageError, FileNotFoundError):
    """An input file or folder does not exist."""

    def __str__(self) -> str:  # that of OSError expects an errno
        return str(self.args[0])


class MissingExtra(VqlabelError):
    """An optional package is needed but not installed."""

    exit_code = 1

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"this needs {package}, which is not installed; run: pip install 'vqlabel[{extra}]'")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.package, self.extra)


class BadInput(VqlabelError):
    """A file is malformed, corrupt or hostile; none of its content is used."""

    exit_code = 3


class BadLabels(BadInput):
    """A dump of labels cannot be used: it is empty, contains NaN or Inf, or has other classes or another domain."""


class BadContainer(BadInput):
    """A `.vql` or codec file violates docs/format.md: truncated, altered, of another type or from a newer version."""


class CodeOutOfRange(BadInput):
    """An integer exceeds its width in bits or its codebook, or packed integers are damaged."""


class TargetExists(VqlabelError):
    """The target exists and --overwrite was not given."""

    exit_code = 4


class VqlabelWarning(UserWarning):
    """A failure that does not affect the result; the command line prints it to stderr as a note."""


def require(ok: object, field: str, value: object, limit: str, error: type[VqlabelError] = UsageError) -> None:
    """Raise an error "{field} is {value}; it {limit}" unless `ok`.

    Args:
        field: name of the argument or option.
        limit: a predicate with the limit and the remedy, such as "must be 1..16".
        error: type of the error.
    """
    if not ok:
        raise error(f"{field} is {value!r}; it {limit}")
