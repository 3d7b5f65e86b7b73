"""Objects that read a file: they pickle to what opens it again, and close it at the end of a `with` block."""

from typing import Any, Self

import torch

from vqlabel.errors import UsageError


class Reopened:
    """Base of such objects. A subclass has `_state`, `_restore` and `close`."""

    def __getstate__(self) -> dict[str, Any]:
        return self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _restore(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def checked_device(device: str | torch.device) -> torch.device:
    """Raises UsageError unless torch knows such a device."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}; it must be cpu, cuda, cuda:1 ... ({str(error).splitlines()[0][:120]})") from None
