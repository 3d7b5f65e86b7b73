"""JSON of the header: written in canonical form, read strictly."""

import json
from typing import Any

from vqlabel.container.layout import MAX_JSON_DEPTH


def canonical(value: Any) -> str:
    """JSON with sorted keys, no blanks, in ASCII: same input, same bytes. `__metadata__` sorts before tensor names."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse(text: str) -> Any:
    """Inverse of `canonical`; other whitespace and order of keys are accepted.

    Raises:
        ValueError: not JSON, a key that occurs twice, or more than MAX_JSON_DEPTH levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
        depth = _depth(value)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if depth > MAX_JSON_DEPTH:
        raise TooDeep(f"more than {MAX_JSON_DEPTH} levels")
    return value


class TooDeep(ValueError):
    """Valid JSON of more than MAX_JSON_DEPTH levels."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inside), default=0)
