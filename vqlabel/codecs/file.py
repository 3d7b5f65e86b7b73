"""A fitted codec <-> one safetensors file: decoder, resolved configuration, and what was measured when it was fitted."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqlabel.codecs.base import LabelCodec
from vqlabel.codecs.fitted_on import FittedOn
from vqlabel.codecs.registry import CODECS
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.config import FitConfig, codec_config
from vqlabel.errors import BadContainer, NoSuchFile, UsageError, require
from vqlabel.storage.formats import CODEC
from vqlabel.storage.targets import atomic_target
from vqlabel.type_checks import check_argument_types

KEY, SUM = "vqlabel.codec", "sha256"


def build_codec(kind: object, config: object, tensors: Mapping[str, Tensor]) -> LabelCodec:
    """A codec from what a file holds of it.

    Raises:
        BadContainer: an unknown kind, a configuration that is none, or tensors that do not fit it.
    """
    resolved = codec_config(kind, config)
    return CODECS[resolved.kind][0].build(resolved, tensors).eval()


@check_argument_types
def save_codec(
    codec: LabelCodec, path: str | PathLike[str], report: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Write a codec file; it appears whole or not at all.

    Raises:
        TargetExists: the target is there and `overwrite` is false.
    """
    from safetensors.torch import save

    # One metadata key, because safetensors writes several in no fixed order, and the same fit should give the same bytes.
    described = {
        "kind": codec.kind,
        "config": codec.config.to_dict(),
        "report": dict(report or {}),
        "fitted_on": codec.fitted_on.to_dict(),
    }
    tensors = codec.file_tensors()
    metadata = {KEY: json.dumps({**described, SUM: _sha256(described, tensors)}, sort_keys=True)}
    with atomic_target(Path(path), CODEC, overwrite=overwrite) as partial:
        partial.write_bytes(save(tensors, metadata))


def _sha256(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of all that a codec file holds (docs/format.md, "Codec files")."""
    total = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


@check_argument_types
def load_codec(path: str | PathLike[str]) -> tuple[LabelCodec, dict[str, Any]]:
    """Read a codec file: the codec, and the report stored with it.

    Raises:
        UsageError: no such file.
        BadContainer: the file is damaged or no codec.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise NoSuchFile(f"{path}: no such file; name a codec that `vqlabel fit` wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadContainer(f"{path}: no readable codec file ({error}); it is truncated or of another format") from None
    if KEY not in metadata:
        raise BadContainer(f"{path}: a safetensors file, but no codec: `vqlabel fit` writes those")
    try:
        described = json.loads(metadata[KEY])
        found, fitted_on = described.pop(SUM, None), described.get("fitted_on", {})
        kind, config, report = described["kind"], described["config"], dict(described["report"])
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadContainer(f"{path}: its configuration cannot be read ({error!r}); the file is damaged") from None
    whole = described.keys() - {"fitted_on"} == {"kind", "config", "report"} and (
        found is None or found == _sha256(described, tensors)
    )
    if not whole:  # files of before there was a sum have none
        raise BadContainer(f"{path}: its {SUM} does not fit what it holds; it is damaged: copy it again, or fit again")
    try:
        codec = build_codec(kind, config, tensors)
        codec.fitted_on = FittedOn.from_dict(fitted_on, path)
        return codec, report
    except BadContainer as error:
        raise BadContainer(f"{path}: {error}") from None


def cut(codec: LabelCodec, config: FitConfig) -> LabelCodec:
    """A fitted codec at the rate that `config` names in bits or slots; where it names none, the codec itself.

    Raises:
        UsageError: the codec has fewer bits, or is of a kind of one rate; `config` names what only a fit can heed.
    """
    heeded, usual = ("bits", "slots", "codec", "seed", "device"), FitConfig()
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        fits = field.name in heeded or given == getattr(usual, field.name)
        require(fits, field.name, given, "is for a fit, and this codec is fitted; leave it out, or name no codec file")
    if config.bits is None and config.slots is None:
        return codec
    if not isinstance(codec, VqaeCodec):
        raise UsageError(f"a {codec.kind} codec has one rate; fit one with these bits or slots")
    if codec.config.variable and config.slots is None:
        rate = codec.config.rate
        require(config.bits == rate, "bits", config.bits, f"must be left out: labels of this codec have {rate:g} on average")
        return codec
    slots = config.slots
    if slots is None:
        resolved, bits = codec.config, config.bits or 0
        each, head = resolved.code_bits, sum(resolved.head_bits)
        most = head + each * resolved.slots
        least = min(most, head + each * (bits > 0 or resolved.prior is None))  # of 0 bits all is left to the prior
        limit = f"must be {least}..{most}, the codec's {resolved.slots} slots of {each} bits each"
        require(least <= bits <= most, "bits", bits, limit)
        slots = (bits - head) // each
    shorter = codec.prefix(slots)
    shorter.fitted_on = codec.fitted_on
    return shorter
