"""Every codec by its kind, with the class of its configuration."""

from typing import Any

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.raw import RawCodec
from vqlabel.codecs.sparse import SparseCodec
from vqlabel.codecs.topk import TopkCodec
from vqlabel.codecs.vqae import VqaeCodec
from vqlabel.config import RawConfig, SparseConfig, TopkConfig, VqaeConfig

CODECS: dict[str, tuple[type[LabelCodec], Any]] = {
    "vqae": (VqaeCodec, VqaeConfig),
    "sparse": (SparseCodec, SparseConfig),
    "topk": (TopkCodec, TopkConfig),
    "raw": (RawCodec, RawConfig),
}
