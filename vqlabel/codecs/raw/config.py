"""Configuration of the lossless codec."""

from dataclasses import dataclass
from typing import ClassVar

from vqlabel.codecs.config import CodecConfig
from vqlabel.config import check_labels
from vqlabel.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class RawConfig(CodecConfig):
    """Labels bit for bit, in the dtype of the dump."""

    kind: ClassVar[str] = "raw"
    keeps_level: ClassVar[bool] = True
    lossless: ClassVar[bool] = True
    fit_options: ClassVar[tuple[str, ...]] = ()
    classes: int
    domain: str
    dtype: str  # F16 | BF16 | F32

    def _check(self) -> None:
        check_labels(self.classes, self.domain)
        require(self.dtype in ("F16", "BF16", "F32"), "dtype", self.dtype, "must be F16, BF16 or F32")

    @property
    def exact_dtype(self) -> str:
        return self.dtype

    @property
    def widths(self) -> list[int]:
        return [32 if self.dtype == "F32" else 16] * self.classes
