"""A budget for a file -> bytes, and the code bits per label inside them."""

from vqlabel.config import FitConfig
from vqlabel.container import overhead


def budget_of(config: FitConfig, labels: int, classes: int) -> int | None:
    """Bytes of a file of `labels` labels without augmentation and order; None: `config` has no budget."""
    if config.ratio is not None:
        return int(2 * labels * classes / config.ratio)
    return config.bytes


def code_bits_within(budget: int, labels: int) -> int:
    """Code bits per label of the largest file within `budget` bytes, at a fixed rate and without codec tensors."""
    return (8 * (budget - overhead.FILE_BYTES - overhead.CHUNK_TABLE_ROW * -(-labels // overhead.CHUNK_ROWS))) // max(1, labels)
