"""Damaged and forged files: every flipped bit, truncation and exceeded limit raises BadContainer, and nothing else."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from forge import Forge, flip_bit
from safetensors.numpy import save_file

import vqlabel
from vqlabel.bitstream import pack_fixed
from vqlabel.codecs import CODECS
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.container import ContainerReader, verify
from vqlabel.container.layout import MAX_CHUNKS, MAX_FIELDS
from vqlabel.errors import BadContainer, UsageError, VqlabelError
from vqlabel.vql.file import VqlFile

C, K, SLOTS = 10, 100, 2  # K is not a power of two: a code of 7 bits may exceed the codebook
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten raw labels, C = 10, with image indices."""
    folder = tmp_path_factory.mktemp("hostile")
    np.save(folder / "a.npy", RNG.standard_normal((2, 5, C)).astype(np.float16))
    codec = CODECS["raw"].codec(RawConfig(classes=C, domain="logits", dtype="F16"))
    vqlabel.pack(folder / "a.npy", folder / "raw.vql", codec=codec)
    return folder / "raw.vql"


@pytest.fixture(scope="module")
def learned(small: Path) -> Path:
    """Ten labels encoded by an untrained vqae codec."""
    config = VqaeConfig(
        classes=C,
        domain="logits",
        slots=SLOTS,
        codebook_size=K,
        latent=4,
        code_width=4,
        quantizer="residual",
        weight_bits=8,
        prior=None,
        temperature=(1.0,),
    )
    codec = CODECS["vqae"].codec(config)
    torch.manual_seed(0)
    for weight in codec.parameters():
        torch.nn.init.normal_(weight)
    vqlabel.pack(small.with_name("a.npy"), small.with_name("vqae.vql"), codec=codec)
    return small.with_name("vqae.vql")


@pytest.fixture
def forge(small: Path) -> Forge:
    return Forge(small)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "forged.vql"


def read_all(path: Path) -> None:
    """Read and check a file completely."""
    verify(path)
    vqlabel.open(path)[:]


def refused(path: Path, message: str) -> None:
    with pytest.raises(BadContainer, match=message) as found:
        read_all(path)
    assert str(path) in str(found.value)


def test_a_file_that_is_taken_apart_and_reassembled_is_read_as_before(small: Path, learned: Path, target: Path) -> None:
    for path in (small, learned):
        read_all(Forge(path).write(target))
        torch.testing.assert_close(vqlabel.open(target)[:], vqlabel.open(path)[:], rtol=0, atol=0)


# Damage.


def every_byte(path: Path) -> Iterator[int]:
    assert 8192 < path.stat().st_size < 12_000
    return iter(range(path.stat().st_size))


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_flipped_bit_of_any_byte_is_refused(bits: int, small: Path, target: Path) -> None:
    data = small.read_bytes()
    target.write_bytes(data)
    with target.open("r+b", buffering=0) as file:
        for at in every_byte(small):
            for bit in range(at, at + bits):
                file.seek(at)
                file.write(bytes([data[at] ^ 1 << bit % 8]))
                with pytest.raises(BadContainer):
                    verify(target)
            file.seek(at)
            file.write(data[at : at + 1])
    verify(target)


def test_every_truncation_is_refused(small: Path, target: Path) -> None:
    target.write_bytes(small.read_bytes())
    with target.open("r+b", buffering=0) as file:
        for size in reversed(list(every_byte(small))):
            file.truncate(size)
            with pytest.raises(BadContainer):
                verify(target)


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 32, b"PK\x05\x06"])
def test_data_behind_the_seal_is_refused(small: Path, target: Path, tail: bytes) -> None:
    target.write_bytes(small.read_bytes() + tail)
    refused(target, "truncated or has data behind it")


def test_a_file_truncated_while_it_is_read_is_refused(small: Path, target: Path) -> None:
    target.write_bytes(small.read_bytes())
    reader = ContainerReader(target)
    target.write_bytes(small.read_bytes()[:8200])
    with pytest.raises(BadContainer, match="early, at byte 8200; the file is truncated"):
        reader.rows("codes")


def test_files_of_other_types_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"logits": np.zeros((4, 3), np.float32)}, other)
    refused(other, "not a .vql file but a .safetensors file; `vqlabel pack` makes a .vql of the labels in it")
    area = 8192
    header = json.dumps({"x": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}}).encode().ljust(area - 8)
    other.write_bytes((area - 8).to_bytes(8, "little") + header + bytes(32))
    refused(other, "a safetensors file, but not a .vql file|not a .vql file but a .safetensors file")
    known = {
        b"": "an empty file",
        b"PK\x03\x04": "a zip archive",
        b"\0" * 20_000: "a file of zero bytes only",
        b"<html>": "an HTML page",
    }
    for content, what in known.items():
        other.write_bytes(content)
        refused(other, f"not a .vql file but {what}")
    other.write_bytes(b"\xff" * 20_000)
    refused(other, "not a .vql file")
    for missing, says in ((tmp_path, "is a folder, and a .vql is a file"), (tmp_path / "none.vql", "no such file")):
        with pytest.raises(UsageError, match=says):
            verify(missing)


# The header's limits.


def seal_less(f: Forge) -> None:
    del f.header["vql.seal"]


def tensor(name: str, **fields: Any) -> Callable[[Forge], None]:
    """A tensor of no bytes at the end of the body, but for `fields`."""

    def change(f: Forge) -> None:
        end = len(f.body)
        f.header[name] = {"dtype": "U8", "shape": [0], "data_offsets": [end, end], **fields}

    return change


def crowd(f: Forge) -> None:
    for i in range(4096):
        tensor(f"codec.t{i}")(f)


def move(name: str, start: int, stop: int) -> Callable[[Forge], None]:
    def change(f: Forge) -> None:
        first, last = f.header[name]["data_offsets"]
        f.header[name] |= {"data_offsets": [first + start, last + stop], "shape": [last + stop - first - start]}

    return change


def metadata(**values: Any) -> Callable[[Forge], None]:
    return lambda f: f.metadata.update({f"vql.{key}": value for key, value in values.items()})


def stream(**fields: Any) -> Callable[[Forge], None]:
    return lambda f: f.metadata["vql.streams"]["codes"].update(fields)


def add_stream(name: str) -> Callable[[Forge], None]:
    return lambda f: f.metadata["vql.streams"].update({name: f.metadata["vql.streams"]["codes"]})


DEEP: Any = []
for _ in range(8):
    DEEP = [DEEP]

HEADERS = {
    "4097 tensors": (crowd, "tensors; the format allows 4096"),
    "capital in a name": (tensor("codec.Bias"), "tensor 'codec.Bias' is described by"),
    "blank in a name": (tensor("codec bias"), "is described by"),
    "nameless tensor": (tensor(""), "is described by"),
    "name of 129": (tensor("a" * 129), "is described by"),
    "negative offset": (tensor("codec.x", data_offsets=[-1, -1]), "is described by"),
    "boolean side": (tensor("codec.x", shape=[False]), "is described by"),
    "float side": (tensor("codec.x", shape=[0.0]), "is described by"),
    "side of 2^53": (tensor("codec.x", shape=[0, 1 << 53]), "is described by"),
    "offsets of three": (tensor("codec.x", data_offsets=[0, 0, 0]), "is described by"),
    "rank 9": (tensor("codec.x", shape=[0] * 9), "is described by"),
    "type F64": (tensor("codec.x", dtype="F64"), "is described by"),
    "type in a list": (tensor("codec.x", dtype=["U8"]), "is described by"),
    "a field too many": (tensor("codec.x", strides=[1]), "is described by"),
    "no object": (lambda f: f.header.update({"codec.x": [0]}), "is described by"),
    "shape beyond the bytes": (tensor("codec.x", shape=[5]), "in 0 bytes; it needs 5"),
    "hole": (move("codes", 0, -8), "begins at byte .*, the one before it ends at"),
    "overlap": (move("codes", 0, 8), "begins at byte .*, the one before it ends at"),
    "hole at the start": (move("codes", 8, 0), "begins at byte"),
    "no seal": (seal_less, "truncated or has data behind it"),
    "no version": (lambda f: f.metadata.pop("vql.version"), r"format version None; this vqlabel reads 1\.x: upgrade it"),
    "newer major version": (metadata(version="2.0"), r"format version '2\.0'; this vqlabel reads 1\.x: upgrade it"),
    "odd version": (metadata(version="1"), "format version '1'"),
    "unknown feature": (metadata(requires=["sorted_codes"]), r"needs the features \['sorted_codes'\].*upgrade it"),
    "feature that is no name": (metadata(requires=[[]]), "needs the features"),
    "features in no list": (metadata(requires={}), "'vql.requires' is '{}', not a JSON list"),
    "sums too deep": (metadata(columns={"order": DEEP}), "'vql.columns' is .* not a JSON dict"),
    "sums of nothing": (lambda f: f.header.pop("codes.chunks"), "begins at byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_beyond_its_limits_is_refused(forge: Forge, target: Path, case: str) -> None:
    change, message = HEADERS[case]
    forge.header["vql.seal"]["data_offsets"] = [len(forge.body), len(forge.body) + 32]
    change(forge)
    refused(forge.write(target), message)


TEXTS = {
    "key twice": (lambda t: t.replace('"vql.seal":', '"codes": 0, "vql.seal":'), "a key occurs twice"),
    "metadata twice": (lambda t: '{"__metadata__": {"format": "vql"}, ' + t[1:], "a key occurs twice"),
    "nine levels": (lambda t: t[:-1] + ', "x": ' + json.dumps(DEEP) + "}", "not a JSON object of at most 8 levels"),
    "980 levels": (lambda t: t[:-1] + ', "x": ' + "[" * 980 + "]" * 980 + "}", "the header is not JSON"),
    "a million levels": (lambda t: "[" * 1_000_000, "the header is not JSON"),
    "a number of 5000 digits": (lambda t: t.replace("[0,", "[" + "9" * 5000 + ",", 1), "the header is not JSON"),
    "no object": (lambda t: "[]", "not a JSON object"),
    "not ASCII": (lambda t: t.replace("vqlabel", "vqläbel"), "the header is not JSON"),
    "metadata that is no text": (lambda t: t.replace('"format": "vql"', '"format": "vql", "x": 1'), "no format = vql"),
    "another format": (lambda t: t.replace('"format": "vql"', '"format": "pt"'), "no format = vql"),
    "a sum missing": (lambda t: t.replace('\\"codes\\": \\"', '\\"codas\\": \\"'), "vql.sums names other tensors"),
    "sums with a key twice": (lambda t: t.replace('"vql.sums": "{', '"vql.sums": "{\\"codes\\": 1, '), "'vql.sums' is .* not a JSON dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_an_altered_header_text_is_refused(forge: Forge, target: Path, case: str) -> None:
    change, message = TEXTS[case]
    refused(forge.write(target, text=change), message)


@pytest.mark.parametrize("area", [0, 8191, 12288, (16 << 20) + 4096, (1 << 64) - 8])
def test_an_impossible_header_area_is_refused(small: Path, target: Path, area: int) -> None:
    target.write_bytes(((area - 8) % (1 << 64)).to_bytes(8, "little") + small.read_bytes()[8:])
    refused(target, "not a .vql file")


def test_a_seal_that_is_not_at_the_end_is_refused(forge: Forge, target: Path) -> None:
    end = len(forge.body)
    forge.header |= {"vql.seal": {"dtype": "U8", "shape": [24], "data_offsets": [end, end + 24]}}
    forge.header |= {"codec.x": {"dtype": "U8", "shape": [8], "data_offsets": [end + 24, end + 32]}}
    refused(forge.write(target), "not sealed: the last 32 bytes must be vql.seal")


# Streams.

STREAMS = {
    "chunks of 12 rows": (stream(chunk_rows=12), "chunks a multiple of 8"),
    "chunks of none": (stream(chunk_rows=0), "chunks a multiple of 8"),
    "chunks of 2^64": (stream(chunk_rows=1 << 64), "chunks a multiple of 8 up to 65536"),
    "negative rows": (stream(rows=-1), r"rows must be 0\.\.2\^53-1"),
    "boolean rows": (stream(rows=True), r"rows must be 0\.\.2\^53-1"),
    "rows of 2^53": (stream(rows=1 << 53), r"rows must be 0\.\.2\^53-1"),
    "2^50 rows": (stream(rows=1 << 50), f"or {MAX_CHUNKS} chunks"),
    "a chunk of 2^17 rows": (stream(rows=1 << 17, chunk_rows=1 << 17), "chunks a multiple of 8 up to 65536"),
    "a chunk of 2^27 bytes": (stream(bits=[[32, 1 << 20]], rows=32, chunk_rows=32), "exceed 67108864 bytes"),
    "a width of 33": (stream(bits=[[33, 10]]), "are not .width 1..32, count. runs"),
    "a width of 0": (stream(bits=[[0, 10]]), "are not"),
    "a boolean width": (stream(bits=[[True, 10]]), "are not"),
    "no fields": (stream(bits=[]), "are not"),
    "a run of none": (stream(bits=[[16, 0], [16, 10]]), "are not"),
    "2^60 fields": (stream(bits=[[16, 1 << 60]]), f"runs of 1..{MAX_FIELDS} fields"),
    "unknown coding": (stream(coding="lzma"), "coding 'lzma' is unknown; this reader supports fixed, zstd"),
    "coding in a list": (stream(coding=[]), "is unknown"),
    "a field too many": (stream(extra=1), "it needs bits, rows, chunk_rows and coding"),
    "no object": (metadata(streams={"codes": 5}), "it needs bits"),
    "one row more": (stream(rows=11), "does not tile rows and bytes"),
    "eight rows a chunk": (stream(chunk_rows=8), r"its chunk table must be U64 \[2, 6\]"),
    "seven bits": (stream(bits=[[7, 10]]), "does not tile rows and bytes"),
    "no codes": (metadata(streams={}), "has no codes|has no stream"),
    "without payload": (add_stream("columns.x"), "has no payload"),
    "the seal as a stream": (add_stream("vql.seal"), "has no payload"),
    "a table as a stream": (add_stream("codes.chunks"), "has no payload of bytes"),
    "without table": (lambda f: (tensor("columns.x")(f), add_stream("columns.x")(f)), "its chunk table must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_beyond_its_limits_is_refused(forge: Forge, target: Path, case: str) -> None:
    change, message = STREAMS[case]
    change(forge)
    refused(forge.write(target), message)


def test_the_fields_of_all_streams_together_are_limited(forge: Forge, target: Path) -> None:
    for name in ("columns.x", "columns.y", "columns.z"):
        tensor(name)(forge)
        forge.metadata["vql.streams"][name] = {"bits": [[1, MAX_FIELDS]], "rows": 0, "chunk_rows": 8, "coding": "fixed"}
    refused(forge.write(target), f"over {2 * MAX_FIELDS} fields")


@pytest.mark.parametrize("field", ["offset", "stored", "raw", "first", "rows"])
@pytest.mark.parametrize("value", [1, 9, 64, 1 << 53, (1 << 64) - 1])
def test_a_chunk_table_that_does_not_tile_is_refused(forge: Forge, target: Path, field: str, value: int) -> None:
    forge.table("codes", **{field: value})
    refused(forge.write(target), "chunk 0 does not tile rows and bytes")


def test_bytes_behind_the_last_chunk_are_refused(forge: Forge, target: Path) -> None:
    forge.chunk("codes", bytes(200 + 64))
    forge.table("codes", stored=200)
    refused(forge.write(target), "its chunks end at byte 200 of 320")


def test_a_chunk_must_match_the_checksum_in_its_table(forge: Forge, target: Path) -> None:
    forge.table("codes", crc=1)
    path = forge.write(target)
    refused(path, "chunk 0 .* does not match its checksum")
    with pytest.raises(BadContainer, match="does not match its checksum"):
        ContainerReader(path).rows("codes", 3, 4)


@pytest.mark.parametrize("name", ["codes", "codes.chunks", "columns.batch"])
def test_an_altered_tensor_does_not_match_its_checksum(small: Path, target: Path, name: str) -> None:
    target.write_bytes(flip_bit(small.read_bytes(), ContainerReader(small).sections[name].start))
    with pytest.raises(BadContainer, match=r"does not match its (sha256|checksum)"):
        verify(target)


def test_a_payload_must_match_its_sha256_as_well(forge: Forge, target: Path) -> None:
    digest = hashlib.sha256(forge.body[forge.span("codes")]).hexdigest()
    refused(forge.write(target, text=lambda text: text.replace(digest, digest[::-1])), "stream 'codes' does not match its sha256")


def as_zstd(forge: Forge, stored: bytes) -> Forge:
    """The codes as one zstd chunk that holds `stored`: 10 rows of 10 fields of 2 planes are 200 bytes."""
    forge.metadata["vql.streams"]["codes"]["coding"] = "zstd"
    forge.chunk("codes", stored, raw=200)
    return forge


FRAME = zstandard.compress(bytes(200))
FRAMES = {
    "another size": (zstandard.compress(bytes(100)), "declares 100 bytes, expected 200"),
    "a bomb": (zstandard.compress(bytes(1 << 30)), "does not tile|declares 1073741824 bytes, expected 200"),
    "a lie": (zstandard.compress(bytes(100)).replace(b"\x64", b"\xc8", 1), "a zstd frame"),
    "no size": (zstandard.ZstdCompressor(write_content_size=False).compress(bytes(200)), "expected 200"),
    "data behind it": (FRAME + b"\1", "has data behind it"),
    "a second frame": (FRAME + FRAME, "has data behind it"),
    "half a frame": (FRAME[:-2], "a zstd frame"),
    "no frame": (b"no frame at all", "a zstd frame"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_an_invalid_zstd_frame_is_refused(forge: Forge, target: Path, case: str) -> None:
    stored, message = FRAMES[case]
    refused(as_zstd(forge, stored).write(target), message)


def test_padding_behind_a_chunk_must_be_zero(forge: Forge, target: Path) -> None:
    for at, size in ((256, 200), (64, len(FRAME))):
        span = forge.span("codes")
        assert span.stop - span.start == at > size
        forge.body[span.stop - 1] = 1
        refused(forge.write(target), "chunk 0 .* does not match its checksum")
        as_zstd(forge, FRAME)
        read_all(forge.write(target))


def test_unused_bits_of_a_chunk_must_be_zero(learned: Path, target: Path) -> None:
    forge = Forge(learned)
    assert forge.metadata["vql.streams"]["codes"]["coding"] == "fixed"
    stored = bytearray(forge.body[forge.span("codes")][: -(-10 * SLOTS * 7 // 8)])
    assert 10 * SLOTS * 7 % 8 == 4
    stored[-1] |= 0x80
    forge.chunk("codes", bytes(stored))
    refused(forge.write(target), "4 unused high bits of the last byte are not zero")


# What the streams mean.


@pytest.mark.parametrize("code", [K, 127])
def test_a_code_beyond_the_codebook_is_refused_before_it_is_used_as_an_index(learned: Path, target: Path, code: int) -> None:
    forge = Forge(learned)
    codes = VqlFile(learned).codes(0, 10)
    codes[7, 1] = code
    forge.chunk("codes", pack_fixed(codes, [7] * SLOTS))
    path = forge.write(target)
    verify(path)  # the container is intact: only the codec's configuration reveals it
    for read in (lambda file: file.codes(0, 10), lambda file: file.take_codes(np.array([7]))):
        with pytest.raises(BadContainer, match=rf"code {code} is outside 0\.\.99"):
            read(VqlFile(path))
    assert len(VqlFile(path).codes(0, 7)) == 7


def config(**values: Any) -> Callable[[Forge], None]:
    return lambda f: f.metadata["vql.codec"]["config"].update(values)


def scale(value: float) -> Callable[[Forge], None]:
    def change(f: Forge) -> None:
        span = f.span("codec.decoder.codebook.scale")
        f.body[span] = np.full((span.stop - span.start) // 2, value, "<f2").tobytes()

    return change


PRIOR = {"images": 5, "image_width": 2, "hidden": 3, "fields": [], "view": 1}
MEANINGS = {
    "no codebook size": (lambda f: f.metadata["vql.codec"]["config"].pop("codebook_size"), "VqaeConfig has the fields"),
    "a codebook size in words": (config(codebook_size="100"), "codebook_size is '100'"),
    "a codebook of 2^40": (config(codebook_size=1 << 40), "stored VqaeConfig: codebook_size"),
    "a wider codebook": (config(codebook_size=200), "codes of|has shape"),
    "another latent": (config(latent=8, code_width=8), "has shape"),
    "a boolean": (config(weight_bits=True), "weight_bits is True"),
    "other bits a weight": (config(weight_bits=4), "has shape"),
    "a prior out of nothing": (config(prior=PRIOR), "the codec has no tensor 'decoder.prior.images"),
    "a prior with a field too many": (config(prior={**PRIOR, "x": 1}), "PriorConfig has the fields"),
    "a prior of 2^24 images": (config(prior={**PRIOR, "images": 1 << 24, "image_width": 1024}), "has no tensor"),
    "no slots": (config(slots=0), "codes of|has shape"),
    "a field too many": (config(extra=1), "has the fields"),
    "other classes": (config(classes=11), "vql.label is"),
    "unknown codec": (lambda f: f.metadata["vql.codec"].update(kind="gan"), "codec kind 'gan' is unknown"),
    "codec in a list": (metadata(codec=[]), "'vql.codec' is"),
    "label without classes": (metadata(label={}), "'vql.label' is"),
    "unknown order": (metadata(columns={"order": "any"}), "vql.columns is"),
    "no metadata": (lambda f: f.metadata.pop("vql.label"), "'vql.label' is"),
    "an infinite scale": (scale(np.inf), "holds NaN or Inf"),
    "a scale that is no number": (scale(np.nan), "holds NaN or Inf"),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANINGS)
def test_inconsistent_metadata_is_refused(learned: Path, target: Path, case: str) -> None:
    forge = Forge(learned)
    change, message = MEANINGS[case]
    change(forge)
    refused(forge.write(target), message)


def test_batches_must_contain_all_records(small: Path, forge: Forge, target: Path) -> None:
    reader = ContainerReader(small)
    rows, stream = reader.rows("columns.batch"), reader.streams["columns.batch"]
    assert stream.coding.name == "fixed" and rows[:, 2].tolist() == [5, 5]
    rows[0, 2] += 1
    forge.chunk("columns.batch", pack_fixed(rows, stream.bits))
    refused(forge.write(target), "its batches contain 11 records, the header declares 10")


VALUES = [None, True, -1, 0, 1, 7, 1 << 31, 1 << 53, 1 << 64, 0.5, float("nan"), "", "x", "raw", "F32", [], [[]], [1], {}, {"x": 1}]


def alter(value: Any, rng: np.random.Generator) -> None:
    """Replace, remove or duplicate one item at a random depth of `value`, a dict or list that is not empty."""
    key = list(value)[int(rng.integers(len(value)))] if isinstance(value, dict) else int(rng.integers(len(value)))
    if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.9:
        alter(value[key], rng)
    elif rng.random() < 0.1:
        del value[key]
    elif isinstance(value, list) and rng.random() < 0.1:
        value.append(value[key])
    else:
        value[key] = VALUES[int(rng.integers(len(VALUES)))]


@pytest.mark.parametrize("kind", ["raw", "vqae"])
def test_any_alteration_of_a_sealed_header_is_accepted_or_raises_a_vqlabel_error(
    small: Path, learned: Path, target: Path, kind: str
) -> None:
    rng, refusals = np.random.default_rng(1), 0
    for _ in range(300):
        forge = Forge(small if kind == "raw" else learned)
        alter([forge.header, forge.metadata][int(rng.integers(2))], rng)
        forge.write(target)
        try:
            read_all(target)
        except VqlabelError:
            refusals += 1
    assert 200 < refusals < 300
