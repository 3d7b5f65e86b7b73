"""Configuration of the codec of LPQLD."""

from dataclasses import dataclass
from typing import ClassVar

from vqlabel.codecs.config import CodecConfig, check_top_classes


@dataclass(frozen=True, kw_only=True, slots=True)
class TopkConfig(CodecConfig):
    """LPQLD's MR-k: the k largest entries in fp16, with their class ids; students re-normalise over them."""

    kind: ClassVar[str] = "topk"
    fit_options: ClassVar[tuple[str, ...]] = ("slots", "bits")
    classes: int
    domain: str
    k: int

    def _check(self) -> None:
        check_top_classes(self)

    @property
    def widths(self) -> list[int]:
        return [self.id_bits] * self.k + [16] * self.k

    @property
    def class_ids(self) -> slice:
        return slice(self.k)

    @property
    def kept_classes(self) -> int:
        return self.k

    @property
    def holds_sets(self) -> bool:
        return self.k < self.classes

    @property
    def id_bits(self) -> int:
        """Bits of one class id: ceil(log2 C)."""
        return max(1, (self.classes - 1).bit_length())
