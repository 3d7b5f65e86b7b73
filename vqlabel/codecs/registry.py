"""Every codec by its kind."""

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.raw import RawCodec
from vqlabel.codecs.sparse import SparseCodec
from vqlabel.codecs.topk import TopkCodec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.config import CONFIGS, CodecConfig

_CLASSES: dict[str, type[LabelCodec]] = {codec.kind: codec for codec in (VqaeCodec, SparseCodec, TopkCodec, RawCodec)}
CODECS: dict[str, tuple[type[LabelCodec], type[CodecConfig]]] = {kind: (_CLASSES[kind], CONFIGS[kind]) for kind in CONFIGS}
