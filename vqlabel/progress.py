"""What work tells its caller besides its result: how far it is, and what to note."""

from collections.abc import Callable, Sequence

Progress = Callable[[str, int, int, dict[str, float]], None]  # stage, steps done, steps in all, figures by name


def silent(_stage: str, _done: int, _total: int, _figures: dict[str, float]) -> None:
    """For callers who do not want to know."""


def noted(notes: Sequence[str]) -> dict[str, list[str]]:
    """The part of a result that has whole sentences for its reader; none where there are none."""
    return {"notes": list(notes)} if notes else {}
