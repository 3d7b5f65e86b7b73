"""Codec kinds -> configuration class, codec class and fitting function, each imported on first use."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqlabel.errors import BadContainer, require

if TYPE_CHECKING:
    from vqlabel.codecs.base import StoredCodec
    from vqlabel.codecs.config import CodecConfig


@dataclass(frozen=True, slots=True)
class CodecEntry:
    """Import paths of a codec's parts, as "module:name" below `vqlabel.codecs`.

    The configuration does not load torch, so that a `.vql` can be described without it; the codec does not load the
    code of its fit.
    """

    config_at: str
    codec_at: str
    fit_at: str

    @property
    def config(self) -> "type[CodecConfig]":
        return _resolve(self.config_at)  # type: ignore[no-any-return]

    @property
    def codec(self) -> "type[StoredCodec]":
        return _resolve(self.codec_at)  # type: ignore[no-any-return]

    @property
    def fit(self) -> Any:
        """fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> LabelCodec."""
        return _resolve(self.fit_at)


CODECS = {
    "vqae": CodecEntry("vqae.config:VqaeConfig", "vqae.codec:VqaeCodec", "vqae.fit.train:fit"),
    "sparse": CodecEntry("sparse.config:SparseConfig", "sparse.codec:SparseCodec", "sparse.fit:fit"),
    "topk": CodecEntry("topk.config:TopkConfig", "topk.codec:TopkCodec", "topk.codec:fit"),
    "raw": CodecEntry("raw.config:RawConfig", "raw.codec:RawCodec", "raw.codec:fit"),
}
TEXT_CODECS = {  # of the labels of documents; a codec file of a kind that is in both is read as that of single labels
    "token_vqae": CodecEntry("token_vqae.config:TokenVqaeConfig", "token_vqae.codec:TokenVqae", "token_vqae.fit.train:fit"),
    "sparse": CodecEntry("sparse.config:SparseConfig", "sparse.documents:SparseDocuments", "sparse.fit:fit"),
}


def _resolve(import_path: str) -> Any:
    module, name = import_path.split(":")
    return getattr(import_module(f"vqlabel.codecs.{module}"), name)


def check_kind(kind: str) -> None:
    """Raises UsageError unless `kind` is a registered codec."""
    require(kind in CODECS, "codec", kind, f"must be one of {', '.join(CODECS)}")


def config_class(kind: object) -> "type[CodecConfig]":
    """The configuration class of a codec kind; the base class, with its defaults, if the kind is None or unknown."""
    from vqlabel.codecs.config import CodecConfig

    return CODECS[kind].config if isinstance(kind, str) and kind in CODECS else CodecConfig


def codec_entry(kind: object) -> CodecEntry:
    """The entry of a codec kind that a file names.

    Raises:
        BadContainer: the kind is unknown.
    """
    known = CODECS | {name: entry for name, entry in TEXT_CODECS.items() if name not in CODECS}
    if not isinstance(kind, str) or kind not in known:
        raise BadContainer(f"codec kind {kind!r} is unknown; this vqlabel has {', '.join(known)}: upgrade it")
    return known[kind]


def codec_config(kind: object, values: object) -> "CodecConfig":
    """The configuration of a codec of this kind, from the JSON values of a file; it is the same for both registries.

    Raises:
        BadContainer: the kind is unknown, or `values` are not a valid configuration of it.
    """
    return codec_entry(kind).config.from_dict(values)
