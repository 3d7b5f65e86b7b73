"""A budget for a whole file: bytes, and the code bits per label that they leave."""

from vqlabel.config import FitConfig
from vqlabel.container import overhead


def budget_of(config: FitConfig, labels: int, classes: int) -> int | None:
    """Bytes that a file may have without augmentation and order; None: nobody named a budget."""
    if config.ratio is not None:
        return int(2 * labels * classes / config.ratio)
    return config.bytes


def code_bits_within(budget: int, labels: int) -> int:
    """Code bits per label of the largest file within `budget` bytes whose labels all have as many, and whose codec has no tensors."""
    return (8 * (budget - overhead.FILE_BYTES - overhead.CHUNK_TABLE_ROW * -(-labels // overhead.CHUNK_ROWS))) // max(1, labels)
