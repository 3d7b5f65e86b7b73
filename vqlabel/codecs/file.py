"""A fitted codec <-> one safetensors file: decoder tensors, resolved configuration, and the report of the fit."""

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqlabel.codecs.base import LabelCodec, StoredCodec
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.registry import CodecEntry, codec_entry
from vqlabel.errors import BadContainer, NoSuchFile, UsageError
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import atomic_target
from vqlabel.type_checks import check_argument_types

KEY, SHA256 = "vqlabel.codec", "sha256"  # metadata key, and the entry of its JSON with the hash


def build_codec(kind: object, config: object, tensors: Mapping[str, Tensor]) -> StoredCodec:
    """Build a codec from the kind, configuration and tensors of a file.

    Raises:
        BadContainer: the kind is unknown, the configuration invalid, or the tensors do not match it.
    """
    return build_from(codec_entry(kind), config, tensors)


def build_from(entry: CodecEntry, config: object, tensors: Mapping[str, Tensor]) -> StoredCodec:
    """As `build_codec`, for an entry of a registry."""
    return entry.codec.build(entry.config.from_dict(config), tensors).eval()


@check_argument_types
def save_codec(
    codec: StoredCodec, path: str | PathLike[str], report: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Write a codec file atomically.

    Raises:
        TargetExists: the target exists and `overwrite` is false.
    """
    from safetensors.torch import save

    # One metadata key, because safetensors writes several in an arbitrary order; the same fit must give equal bytes.
    description = {
        "kind": codec.kind,
        "config": codec.config.to_dict(),
        "report": dict(report or {}),
        "fitted_on": codec.fitted_on.to_dict(),
    }
    tensors = codec.file_tensors()
    metadata = {KEY: json.dumps({**description, SHA256: _sha256(description, tensors)}, sort_keys=True)}
    with atomic_target(Path(path), CODEC, overwrite=overwrite) as partial:
        partial.write_bytes(save(tensors, metadata))


def _sha256(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash of a codec file's description and tensors (docs/format.md, "Codec files")."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@check_argument_types
def load_codec(path: str | PathLike[str]) -> tuple[LabelCodec, dict[str, Any]]:
    """Read a codec file.

    Returns:
        The codec, and the report of its fit.

    Raises:
        NoSuchFile: the path is not a file.
        BadContainer: the file is damaged or not a codec file.
        UsageError: its codec is for the labels of documents.
    """
    codec, report = load_stored_codec(path)
    if not isinstance(codec, LabelCodec):
        raise UsageError(f"{path}: its codec, {codec.kind}, is for the labels of documents; pass a dump of hidden states with it")
    return codec, report


def load_stored_codec(path: str | PathLike[str]) -> tuple[StoredCodec, dict[str, Any]]:
    """As `load_codec`, of any kind."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise NoSuchFile(f"{path}: no such file; name a codec that `vqlabel fit` wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadContainer(f"{path}: not a readable codec file ({error}); it is truncated or has another format") from None
    if KEY not in metadata:
        raise BadContainer(f"{path}: a safetensors file, but not a codec file; `vqlabel fit` writes codec files")
    try:
        description = json.loads(metadata[KEY])
        sha256, fitted_on = description.pop(SHA256, None), description.get("fitted_on", {})
        kind, config, report = description["kind"], description["config"], dict(description["report"])
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadContainer(f"{path}: its configuration cannot be read ({error!r}); the file is damaged") from None
    intact = description.keys() - {"fitted_on"} == {"kind", "config", "report"} and (
        sha256 is None or sha256 == _sha256(description, tensors)  # older files have no hash
    )
    if not intact:
        raise BadContainer(f"{path}: its {SHA256} does not match its content; the file is damaged: copy it again, or fit again")
    try:
        codec = build_codec(kind, config, tensors)
        codec.fitted_on = FittedOn.from_dict(fitted_on, path)
        return codec, report
    except BadContainer as error:
        raise BadContainer(f"{path}: {error}") from None
