"""How long work tells its caller how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int, dict[str, float]], None]  # stage, steps done, steps in all, figures by name


def silent(_stage: str, _done: int, _total: int, _figures: dict[str, float]) -> None:
    """For callers who do not want to know."""
