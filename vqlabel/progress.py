"""What a long run reports to its caller besides its result: progress, and notes for the user."""

from collections.abc import Callable, Sequence

Progress = Callable[[str, int, int, dict[str, float]], None]  # stage, steps done, number of steps, figures by name


def silent(_stage: str, _done: int, _total: int, _figures: dict[str, float]) -> None:
    """A `Progress` that does nothing."""


def noted(notes: Sequence[str]) -> dict[str, list[str]]:
    """The key "notes" of a result, whole sentences for the user; no key if there are none."""
    return {"notes": list(notes)} if notes else {}
