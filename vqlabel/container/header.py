"""The header of a `.vql` -> metadata, sections and streams. Nothing in it is trusted before it is checked.

Source: docs/format.md, "Header" and "Integrity".
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from vqlabel.container.layout import (
    FEATURES,
    FORMAT,
    HEADER_STEP,
    ITEM_BYTES,
    MAX_FILE_FIELDS,
    MAX_HEADER_BYTES,
    MAX_INTEGER,
    MAX_JSON_DEPTH,
    MAX_RANK,
    MAX_TENSORS,
    NAME,
    SEAL,
    SEAL_BYTES,
    VERSION,
)
from vqlabel.container.recognize import foreign_type
from vqlabel.container.stream import Stream
from vqlabel.container.strict_json import TooDeep, parse
from vqlabel.errors import BadContainer
from vqlabel.storage.bytes import LocalFile

MIN_FILE_BYTES = HEADER_STEP + SEAL_BYTES


class Section(NamedTuple):
    """A tensor's type and shape, and its bytes `start`:`stop` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A header that was checked, with its seal.

    Attributes:
        area: bytes in front of the buffer.
        text: the JSON, without the spaces behind it.
        seal: sha256 of the header area, as the file stores it.
        metadata: strings by key.
        sections: tensors by name.
        requires: names of features that a reader must support.
        sums: sha256 in hex of every tensor but the seal.
        streams: by name.
    """

    area: int
    text: bytes
    seal: bytes
    metadata: dict[str, str]
    sections: dict[str, Section]
    requires: list[str]
    sums: dict[str, Any]
    streams: dict[str, Stream]


def read_header(file: LocalFile) -> Header:
    """Read and check the header of a file.

    Raises:
        BadContainer: the file is of another type, truncated, or its header breaks docs/format.md.
    """
    where = str(file.path)
    area = _read_area(file)
    text = file.read_at(8, area - 8).rstrip(b" ")
    tensors = _parse_header(text, where)
    metadata = _check_metadata(tensors.pop("__metadata__", None), where)
    requires = _check_features(metadata, where)
    sections = _check_sections(tensors, area, file.size, where)
    seal = _check_seal(file, area, sections.get(SEAL))
    sums = parse_metadata(metadata, "vql.sums", dict, where)
    if set(sums) != set(sections) - {SEAL}:
        raise BadContainer(f"{where}: vql.sums names other tensors than the header; the file is damaged or forged")
    streams = _check_streams(parse_metadata(metadata, "vql.streams", dict, where), sums, where)
    return Header(
        area=area, text=text, seal=seal, metadata=metadata, sections=sections, requires=requires, sums=sums, streams=streams
    )


def parse_metadata(metadata: dict[str, str], key: str, kind: type, where: str, default: str = "") -> Any:
    """The JSON value of one metadata key.

    Args:
        kind: dict or list.
        where: file, for messages.
        default: JSON of the value if the key is missing; "": the key must be there.

    Raises:
        BadContainer: the key is missing, or its value is not JSON of that kind, too deep, or has a key twice.
    """
    text = metadata.get(key, default)
    try:
        value = parse(text)
        if isinstance(value, kind):
            return value
    except ValueError:
        pass
    raise BadContainer(f"{where}: metadata {key!r} is {text[:80]!r}, not a JSON {kind.__name__}; damaged or forged")


def _read_area(file: LocalFile) -> int:
    """Bytes of the header area."""
    foreign = foreign_type(file.read_at(0, min(file.size, MIN_FILE_BYTES)))
    if foreign is not None:
        raise BadContainer(f"{file.path}: not a .vql file but {foreign}")
    if file.size < MIN_FILE_BYTES:
        raise BadContainer(
            f"{file.path}: {file.size} bytes; a .vql file has at least {MIN_FILE_BYTES}: it is truncated or not a .vql file"
        )
    area = 8 + int.from_bytes(file.read_at(0, 8), "little")
    if area % HEADER_STEP or not HEADER_STEP <= area <= MAX_HEADER_BYTES or area + SEAL_BYTES > file.size:
        raise BadContainer(
            f"{file.path}: not a .vql file: a header of {area} bytes in a file of {file.size}, or the file is truncated"
        )
    return area


def _parse_header(text: bytes, where: str) -> dict[str, Any]:
    try:
        header = parse(text.decode("ascii"))
    except TooDeep:
        header = None
    except ValueError as error:
        raise BadContainer(f"{where}: the header is not JSON ({str(error)[:80]}); not a .vql file, or damaged") from None
    if not isinstance(header, dict):
        raise BadContainer(f"{where}: the header is not a JSON object of at most {MAX_JSON_DEPTH} levels")
    return header


def _check_metadata(metadata: Any, where: str) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()) or metadata.get("format") != FORMAT:
        raise BadContainer(f"{where}: a safetensors file, but not a .vql file: its metadata has no format = {FORMAT}")
    version = metadata.get("vql.version", "").split(".")
    valid = len(version) == 2 and all(part.isascii() and part.isdigit() and len(part) < 6 for part in version)
    if not valid or int(version[0]) != VERSION[0]:
        raise BadContainer(
            f"{where}: format version {metadata.get('vql.version')!r}; this vqlabel reads {VERSION[0]}.x: upgrade it"
        )
    return metadata


def _check_features(metadata: dict[str, str], where: str) -> list[str]:
    requires: list[str] = parse_metadata(metadata, "vql.requires", list, where, default="[]")
    unknown = [feature for feature in requires if not isinstance(feature, str) or feature not in FEATURES]
    if unknown:
        raise BadContainer(f"{where}: needs the features {unknown}, which this vqlabel does not support: upgrade it")
    return requires


def _check_sections(tensors: dict[str, Any], area: int, size: int, where: str) -> dict[str, Section]:
    """The sections of all tensors, checked to fill the file from the header area to its end without a gap."""
    if len(tensors) > MAX_TENSORS:
        raise BadContainer(f"{where}: {len(tensors)} tensors; the format allows {MAX_TENSORS}")
    sections = {name: _section(name, value, area, where) for name, value in tensors.items()}
    end = area
    for name, section in sorted(sections.items(), key=lambda item: (item[1].start, item[1].stop)):
        if section.start != end:
            raise BadContainer(
                f"{where}: tensor {name!r} begins at byte {section.start}, the one before it ends at {end}: damaged or forged"
            )
        end = section.stop
    if end != size:
        raise BadContainer(f"{where}: the header describes {end} bytes, the file has {size}: it is truncated or has data behind it")
    return sections


def _section(name: str, value: Any, area: int, where: str) -> Section:
    valid = (
        NAME.fullmatch(name)
        and isinstance(value, dict)
        and set(value) == {"dtype", "shape", "data_offsets"}
        and isinstance(value["dtype"], str)
        and value["dtype"] in ITEM_BYTES
        and _are_integers(value["shape"])
        and len(value["shape"]) <= MAX_RANK
        and _are_integers(value["data_offsets"])
        and len(value["data_offsets"]) == 2
    )
    if not valid:
        raise BadContainer(
            f"{where}: tensor {name[:140]!r} is described by {str(value)[:120]}; damaged, forged or from a newer version"
        )
    start, stop = value["data_offsets"]
    count = ITEM_BYTES[value["dtype"]]
    for side in value["shape"]:
        count *= side
    if stop - start != count:
        raise BadContainer(
            f"{where}: tensor {name!r} is {value['dtype']} {value['shape']} in {stop - start} bytes; it needs {count}"
        )
    return Section(value["dtype"], tuple(value["shape"]), area + start, area + stop)


def _are_integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= MAX_INTEGER for v in values)


def _check_seal(file: LocalFile, area: int, section: Section | None) -> bytes:
    if section is None or section.stop != file.size or section.size != SEAL_BYTES:
        raise BadContainer(
            f"{file.path}: not sealed: the last {SEAL_BYTES} bytes must be {SEAL}; it is truncated or was never finished"
        )
    seal = file.read_at(section.start, SEAL_BYTES)
    if hashlib.sha256(file.read_at(0, area)).digest() != seal:
        raise BadContainer(f"{file.path}: the seal does not match the header; the file is damaged: copy it again")
    return seal


def _check_streams(described: dict[str, Any], sums: dict[str, Any], where: str) -> dict[str, Stream]:
    streams, fields = dict[str, Stream](), 0
    for name, value in described.items():
        try:
            streams[name] = Stream.from_json(name, value)
        except BadContainer as error:
            raise BadContainer(f"{where}: {error}") from None
        fields += len(streams[name].bits)
        if fields > MAX_FILE_FIELDS or name not in sums:
            raise BadContainer(
                f"{where}: stream {name!r} has no payload, or all streams have over {MAX_FILE_FIELDS} fields; forged"
            )
    return streams
