"""A dump through a `.vql` and back: the labels, the errors, and that a target is complete or absent."""

import contextlib
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from paths import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

import vqlabel
from vqlabel import FitConfig, LabelBatch, VqlDataset
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.container import ContainerWriter
from vqlabel.errors import BadContainer, BadLabels, TargetExists, UsageError, VqlabelError
from vqlabel.labels import LabelSource, open_labels
from vqlabel.metrics.distortion import as_logits, mixed_kl_divergence
from vqlabel.threads import named_threads
from vqlabel.vql.column_writer import ColumnWriter
from vqlabel.vql.decode import decode_steps, read_codec
from vqlabel.vql.file import VqlFile

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
RAW = FitConfig(codec="raw")


def read_tree(folder: Path) -> dict[str, list[Any]]:
    return {str(file.relative_to(folder)): torch.load(file, weights_only=True) for file in sorted(folder.glob("epoch_*/*.tar"))}


def read_labels(path: Path, domain: str = "logits") -> Tensor:
    return load_file(path)[domain] if path.suffix == ".safetensors" else torch.from_numpy(np.load(path))


def pack_raw(dump: Path, out: Path, domain: str | None = None) -> Path:
    source = open_labels(dump, domain=domain)
    vqlabel.pack(source, out, codec=vqlabel.fit(source, RAW)[0])
    assert vqlabel.verify(out)["bytes"] == out.stat().st_size
    return out


# --- what returns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["logits", "probs"])
@pytest.mark.parametrize("dtype", TYPES)
def test_raw_labels_return_bit_for_bit(
    dtype: str, domain: str, logits: NDArray[np.float16], probs: NDArray[np.float16], tmp_path: Path
) -> None:
    labels = torch.from_numpy(logits if domain == "logits" else probs).flatten(0, 1).to(TYPES[dtype], copy=True)
    if domain == "logits":
        labels[0, :6] = torch.tensor([0.0, -0.0, 6e-8, -6e-8, 65504, -65504]).to(TYPES[dtype])
        labels[1] = labels[1].float().mul(1.00001).to(TYPES[dtype])
    save_file({domain: labels}, tmp_path / "dump.safetensors")
    pack_raw(tmp_path / "dump.safetensors", tmp_path / "a.vql")
    file = VqlFile(tmp_path / "a.vql")
    assert file.label == {"classes": 40, "domain": domain, "dtype": dtype, "shift_preserved": True}
    for name in ("a.safetensors", *(["a.npy"] if dtype != "BF16" else [])):
        result = vqlabel.unpack(tmp_path / "a.vql", tmp_path / name)
        assert result == {"path": str(tmp_path / name), "records": 360, "classes": 40, "dtype": dtype.lower()}
        back = read_labels(tmp_path / name, domain)
        assert back.dtype == TYPES[dtype]
        assert torch.equal(back.view(torch.int16), labels.view(torch.int16))
    again = open_labels(tmp_path / "a.safetensors")
    assert (again.domain, again.dtype) == (domain, dtype)


@pytest.mark.parametrize("as_bf16", [False, True], ids=["fp16", "bf16"])
def test_a_raw_tree_returns_item_for_item(
    as_bf16: bool, batches: list[LabelBatch], write_dump: Callable[..., Path], tmp_path: Path
) -> None:
    write_dump(tmp_path / "dump", batches, dtype="BF16" if as_bf16 else "F16")
    vqlabel.unpack(pack_raw(tmp_path / "dump", tmp_path / "a.vql"), tmp_path / "back")
    check_same_tree(tmp_path / "dump", tmp_path / "back", exact=True)


def check_same_tree(original: Path, back: Path, *, exact: bool) -> None:
    expected, actual = read_tree(original), read_tree(back)
    assert list(expected) == list(actual)
    for name, items in expected.items():
        crop, flip, index, lam, box, labels = actual[name]
        assert torch.equal(crop.view(torch.int32), items[0].view(torch.int32))
        assert torch.equal(flip, items[1])
        assert torch.equal(index, items[2])
        assert (lam, box) == (items[3], items[4])
        assert (labels.dtype, labels.shape) == (items[5].dtype, items[5].shape)
        assert torch.equal(labels, items[5]) is exact
    name = "sampler_indices_epoch.json"
    assert json.loads((back / name).read_text()) == json.loads((original / name).read_text())
    assert {p.name for p in back.iterdir()} == {p.name for p in original.iterdir()}


def test_a_tree_returns_with_the_items_of_the_original_around_the_decoded_labels(tree: Path, vql: Path, tmp_path: Path) -> None:
    vqlabel.unpack(vql, tmp_path / "back")
    check_same_tree(tree, tmp_path / "back", exact=False)


def test_a_vql_an_array_and_a_tree_have_the_same_labels(vql: Path, tree: Path, codec: LabelCodec, tmp_path: Path) -> None:
    raw = torch.from_numpy(np.concatenate([batch.labels for batch in open_labels(tree)]))
    with torch.no_grad():
        want = codec.decode(codec.encode(raw))
    for name in ("a.npy", "a.safetensors", "tree"):
        vqlabel.unpack(vql, tmp_path / name)
    torch.testing.assert_close(read_labels(tmp_path / "a.npy").float(), want, atol=0.02, rtol=2e-3)
    assert torch.equal(read_labels(tmp_path / "a.npy"), read_labels(tmp_path / "a.safetensors"))
    from_tree = torch.from_numpy(np.concatenate([batch.labels for batch in open_labels(tmp_path / "tree")]))
    torch.testing.assert_close(from_tree, read_labels(tmp_path / "a.npy"), atol=0.02, rtol=2e-3)


def test_an_array_can_become_a_tree_whose_order_is_that_of_its_rows(
    dump: Path, logits: NDArray[np.float16], tmp_path: Path
) -> None:
    pack_raw(dump, tmp_path / "a.vql")
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back", layout="lpld")
    trees = read_tree(tmp_path / "back")
    assert list(trees) == [f"epoch_{epoch}/batch_0.tar" for epoch in range(6)]
    assert all(torch.equal(items[5], torch.from_numpy(logits[epoch])) for epoch, items in enumerate(trees.values()))
    assert all(item is None for items in trees.values() for item in items[:5])
    assert open_labels(tmp_path / "back").read(3).image.tolist() == list(range(60))
    with pytest.raises(
        UsageError, match=r"out is '.*'; it must end in \.npy or \.safetensors; for a dump of another layout pass --layout sre2l"
    ):
        vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back2")


@pytest.mark.parametrize(
    "records", [(None, None), (0, 10), (-5, None), (None, -350), (7, 7), (0, 0), (360, None), (100, 359), (-360, 360)], ids=str
)
def test_a_range_of_records_is_a_slice_of_all_labels(
    records: tuple[int | None, int | None], vql: Path, dataset: VqlDataset, tmp_path: Path
) -> None:
    labels = dataset[:].half()
    for name in ("a.npy", "a.safetensors"):
        result = vqlabel.unpack(vql, tmp_path / name, records=records)
        part = read_labels(tmp_path / name)
        assert part.shape == (result["records"], 40)
        torch.testing.assert_close(part, labels[slice(*records)], atol=0.01, rtol=2e-3)


@pytest.mark.parametrize("records", [(0, 361), (-361, None), (361, None), (5, 3), (-1, 0)], ids=str)
def test_a_range_outside_the_file_is_refused(records: tuple[int | None, int | None], vql: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"records {records[0]}:{records[1]} are out of range; the file has records 0:360"):
        vqlabel.unpack(vql, tmp_path / "a.npy", records=records)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_labels_are_written_in_the_requested_dtype(dtype: str, vql: Path, dataset: VqlDataset, tmp_path: Path) -> None:
    assert vqlabel.unpack(vql, tmp_path / "a.safetensors", dtype=dtype)["dtype"] == dtype
    labels = read_labels(tmp_path / "a.safetensors")
    assert labels.dtype == TYPES[dtype.upper()]
    torch.testing.assert_close(labels, dataset[:].to(labels.dtype), atol=1e-5, rtol=0.008)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.npy", {"dtype": "bf16"}, r"dtype is 'bf16'; it cannot be written to \.npy, .*; use \.safetensors or --dtype f32"),
        ("a.npy", {"dtype": "f8"}, "dtype is 'f8'; it must be f16, bf16 or f32"),
        (
            "a.npy",
            {"layout": "sre2l"},
            r"layout is 'sre2l'; it needs a folder as target, but .*a\.npy is a single array: pass a folder",
        ),
        ("a", {"layout": "fkd2"}, "layout is 'fkd2'; it must be one of sre2l, lpld"),
        (
            "a",
            {"records": (0, 10)},
            r"records is '0:10'; it needs a \.npy or \.safetensors target: other layouts store complete batches",
        ),
        ("no/a.npy", {}, "no: no such folder; make it first"),
    ],
)
def test_what_cannot_be_written_is_refused(out: str, options: dict[str, Any], message: str, vql: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        vqlabel.unpack(vql, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "tree"])
@pytest.mark.parametrize(
    ("dtype", "value", "limit"), [("f16", 65520, "65504"), ("f16", -1e5, "65504"), ("bf16", 3.4e38, r"3\.389531e\+38")]
)
def test_a_value_outside_the_range_of_the_dtype_is_refused_and_not_written_as_infinite(
    dtype: str, value: float, limit: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqlabel.vql.decode.DECODE_RECORDS", 4)
    labels = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    labels[1, 1, 3] = value
    labels[1, 2, 4] = 65519 if dtype == "f16" else 3.38e38  # the type rounds it to its largest
    np.save(tmp_path / "dump.npy", labels)
    pack_raw(tmp_path / "dump.npy", tmp_path / "a.vql")
    before = sorted(tmp_path.iterdir())
    out, options = tmp_path / name, {"layout": "lpld" if name == "tree" else None}
    if (dtype, name) == ("bf16", "a.npy"):
        pytest.skip(".npy has no bf16")
    message = rf"a\.vql: record 6, class 3 decodes to {re.escape(f'{np.float32(value):.7g}')}; the maximum of {dtype} is {limit}: unpack with --dtype f32"
    with pytest.raises(UsageError, match=message):
        vqlabel.unpack(tmp_path / "a.vql", out, dtype=dtype, **options)
    assert sorted(tmp_path.iterdir()) == before
    vqlabel.unpack(tmp_path / "a.vql", out, dtype="f32", **options)
    if name != "tree":
        vqlabel.unpack(tmp_path / "a.vql", out, dtype=dtype, records=(7, None), overwrite=True)
        assert bool(torch.isfinite(read_labels(out)).all())


@pytest.mark.parametrize("level", [8000.0, -8000.0])
@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "tree"])
def test_logits_without_a_preserved_shift_lose_nothing_when_they_are_narrowed(
    name: str, level: float, tree: Path, codec: LabelCodec, tmp_path: Path
) -> None:
    """At 8,000 float16 has steps of 4 and bf16 of 32; softmax does not depend on the level of the logits."""
    assert isinstance(codec, VqaeCodec)
    codec.decoder.bias.data.add_(level).round_()
    codec.decoder.bias.data[7] = -65504  # a masked class, below what halves hold once the others are near 0
    vqlabel.pack(tree, tmp_path / "a.vql", codec=codec)
    wide = vqlabel.open(tmp_path / "a.vql")[:]
    assert float(wide.amax(1).sub(level).abs().max()) < 50
    for dtype in ["f16"] if name != "a.safetensors" else ["f16", "bf16"]:
        options = {"layout": "lpld"} if name == "tree" else {}
        vqlabel.unpack(tmp_path / "a.vql", tmp_path / name, dtype=dtype, overwrite=True, **options)
        written = torch.cat([t[5] for t in read_tree(tmp_path / name).values()]) if name == "tree" else read_labels(tmp_path / name)
        assert (written.dtype, float(written.float().amax(1).abs().max())) == (TYPES[dtype.upper()], 0)
        if name == "tree":  # in the order of its batches, which is not that of its file names
            continue
        lost = mixed_kl_divergence(as_logits(wide, "logits"), as_logits(written.clone(), "logits"), (1.0,))
        assert float(lost.max()) < 0.001
        assert torch.equal(written.argmax(1), wide.argmax(1))


def test_between_two_decoded_steps_the_callers_gradient_mode_is_unchanged(vql: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqlabel.vql.decode.DECODE_RECORDS", 100)
    file = VqlFile(vql)
    sizes = []
    for labels in decode_steps(file, read_codec(file), 0, 360):
        assert not torch.is_inference_mode_enabled()
        assert labels.is_inference()
        sizes.append(len(labels))
    assert sizes == [100, 100, 100, 60]


# --- packing ----------------------------------------------------------------------------------------------------------


def test_a_harder_search_gives_better_labels_in_no_more_bytes(
    dump: Path, codec: LabelCodec, logits: NDArray[np.float16], tmp_path: Path
) -> None:
    raw, loss = torch.from_numpy(logits).flatten(0, 1), []
    assert isinstance(codec, VqaeCodec)
    codec = codec.calibrated()  # their loss is what codes are chosen by; labels for students lie further from their mean
    for effort in ("fast", "normal", "best"):
        out = tmp_path / f"{effort}.vql"
        result = vqlabel.pack(dump, out, codec=codec, effort=effort)
        assert result.pop("augmentation_bits") == {}, "an array has no views"
        stored = 8 * VqlFile(out).container.stored("codes") / 360
        assert result == {
            "path": str(out), "records": 360, "classes": 40, "epochs": 6, "bytes": out.stat().st_size, "code_bits": 12,
            "stored_code_bits": round(stored, 4),
        }  # fmt: skip
        decoded = vqlabel.open(out)[:]
        loss.append(float(mixed_kl_divergence(as_logits(raw, "logits"), as_logits(decoded, "logits"), (1.0, 4.0, 20.0)).mean()))
    assert loss == sorted(loss, reverse=True)
    assert loss[2] < loss[0]
    for effort in ("fast", "normal", "best"):  # zstd may find a few bytes
        assert 0.9 < VqlFile(tmp_path / f"{effort}.vql").container.stored("codes") / (360 * 12 // 8) <= 1
    with pytest.raises(UsageError, match="effort is 'most'; it must be one of fast, normal, best"):
        vqlabel.pack(dump, tmp_path / "most.vql", codec=codec, effort="most")
    assert not (tmp_path / "most.vql").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_dump_and_codec_give_the_same_bytes_with_any_number_of_workers(
    workers: int, tree: Path, vql: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in small groups on many threads."""
    import vqlabel.workflows.pack

    monkeypatch.setattr(vqlabel.workflows.encode, "ENCODE_RECORDS", 2048 if workers == 1 else 60)
    with named_threads(workers):
        vqlabel.pack(tree, tmp_path / "a.vql", codec=codec)
    assert (tmp_path / "a.vql").read_bytes() == vql.read_bytes()


def test_a_dump_larger_than_a_group_keeps_its_order(tmp_path: Path) -> None:
    labels = np.stack([np.arange(10_000), -np.arange(10_000) - 1], 1).astype(np.float32)
    np.save(tmp_path / "dump.npy", labels)
    pack_raw(tmp_path / "dump.npy", tmp_path / "a.vql")
    np.testing.assert_array_equal(vqlabel.open(tmp_path / "a.vql")[:].numpy(), labels)


def test_packing_does_not_change_the_interpreters_switch_interval(dump: Path, codec: LabelCodec, tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.02)
    try:
        vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
        assert sys.getswitchinterval() == pytest.approx(0.02)
        with pytest.raises(KeyboardInterrupt):
            vqlabel.pack(Interrupted(dump), tmp_path / "b.vql", codec=codec)
        assert sys.getswitchinterval() == pytest.approx(0.02)
    finally:
        sys.setswitchinterval(before)


def test_a_file_names_the_labels_it_came_from(
    dump: Path, vql: Path, logits: NDArray[np.float16], codec: LabelCodec, tmp_path: Path
) -> None:
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    assert VqlFile(tmp_path / "a.vql").source == {"layout": "arrays", "labels_sha256": hashlib.sha256(logits.tobytes()).hexdigest()}
    assert VqlFile(vql).source["layout"] == "lpld"
    assert VqlFile(vql).source["labels_sha256"] != VqlFile(tmp_path / "a.vql").source["labels_sha256"], "other records' order"


def test_existing_targets_are_kept_without_overwrite(dump: Path, vql: Path, codec: LabelCodec, tmp_path: Path) -> None:
    for name in ("a.vql", "a.npy"):
        (tmp_path / name).write_bytes(b"precious")
    (tmp_path / "tree").mkdir()
    with pytest.raises(TargetExists, match=r"a\.vql exists; pass --overwrite \(overwrite=True\)"):
        vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    for name in ("a.npy", "tree"):
        with pytest.raises(TargetExists, match=f"{name} exists; pass --overwrite"):
            vqlabel.unpack(vql, tmp_path / name)
    assert (tmp_path / "a.vql").read_bytes() == (tmp_path / "a.npy").read_bytes() == b"precious"
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec, overwrite=True)
    vqlabel.verify(tmp_path / "a.vql")
    vqlabel.unpack(vql, tmp_path / "a.npy", overwrite=True)
    vqlabel.unpack(vql, tmp_path / "tree", overwrite=True)
    assert read_labels(tmp_path / "a.npy").shape == (360, 40)
    assert len(read_tree(tmp_path / "tree")) == 24
    assert {path.name for path in tmp_path.iterdir()} == {"a.vql", "a.npy", "tree"}


@pytest.mark.parametrize("kind", ["vqae", "topk", "raw"])
def test_a_codec_for_other_labels_is_refused(
    kind: str, dump: Path, logits: NDArray[np.float16], probs: NDArray[np.float16], tmp_path: Path
) -> None:
    codec = vqlabel.fit(dump, FitConfig(codec=kind, bits=44, epochs=1))[0]
    np.save(tmp_path / "wide.npy", np.concatenate([logits, logits], 2))
    np.save(tmp_path / "probs.npy", probs)
    np.save(tmp_path / "f32.npy", logits.astype(np.float32))
    with pytest.raises(UsageError, match=r"wide\.npy has 80 classes, the codec was fitted for 40; fit one on this dump"):
        vqlabel.pack(tmp_path / "wide.npy", tmp_path / "a.vql", codec=codec)
    with pytest.raises(UsageError, match=r"probs\.npy has probs, the codec was fitted for logits; fit one on this dump"):
        vqlabel.pack(open_labels(tmp_path / "probs.npy", domain="probs"), tmp_path / "a.vql", codec=codec)
    if kind == "raw":
        with pytest.raises(UsageError, match=r"f32\.npy is F32, the raw codec was fitted for F16; fit one on this dump"):
            vqlabel.pack(tmp_path / "f32.npy", tmp_path / "a.vql", codec=codec)
    else:
        vqlabel.pack(tmp_path / "f32.npy", tmp_path / "b.vql", codec=codec)
        assert VqlFile(tmp_path / "b.vql").label["dtype"] == "F32"
    assert not (tmp_path / "a.vql").exists()


def test_the_decoder_of_a_vql_packs_to_the_same_file(tree: Path, vql: Path, dataset: VqlDataset, tmp_path: Path) -> None:
    vqlabel.pack(tree, tmp_path / "a.vql", codec=dataset.decoder)
    assert (tmp_path / "a.vql").read_bytes() == vql.read_bytes()


@pytest.mark.parametrize("ends_well", [True, False])
def test_packing_restores_the_effort_of_a_codec(
    ends_well: bool, dump: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, encode, interval = [], codec.encode, sys.getswitchinterval()

    def watched(labels: Tensor, context: object = None) -> Tensor:
        seen.append(codec.effort)
        return encode(labels, context)

    def progress(*_: object) -> None:
        if not ends_well:
            raise KeyboardInterrupt

    monkeypatch.setattr(codec, "encode", watched)
    codec.set_effort("best")
    with contextlib.nullcontext() if ends_well else pytest.raises(KeyboardInterrupt) as stopped:
        vqlabel.pack(dump, tmp_path / "a.vql", codec=codec, effort="fast", progress=progress)
    assert set(seen) == {"fast"}
    assert codec.effort == "best"
    assert sys.getswitchinterval() == interval, f"workers may go on after {stopped}"


def test_packing_restores_the_device_of_a_codec(
    dump: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    monkeypatch.setattr(codec, "to", lambda device: moves.append(str(device)))
    with pytest.raises(RuntimeError, match="abacus"):  # the labels cannot go there
        vqlabel.pack(dump, tmp_path / "a.vql", config=FitConfig(device="abacus"), codec=codec)
    assert moves == ["abacus", "cpu"]


def test_bad_labels_in_the_middle_of_a_dump_leave_no_file(logits: NDArray[np.float16], codec: LabelCodec, tmp_path: Path) -> None:
    bad = logits.copy()
    bad[4, 7, 3] = np.nan
    np.save(tmp_path / "dump.npy", bad)
    with pytest.raises(BadLabels, match=r"row 7: class 3 is nan; labels must be finite"):
        vqlabel.pack(tmp_path / "dump.npy", tmp_path / "a.vql", codec=codec)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.npy"]


# --- complete or absent -----------------------------------------------------------------------------------------------


class Interrupted(LabelSource):
    """A dump whose reader is interrupted in the middle."""

    def __init__(self, dump: Path) -> None:
        self._inner = open_labels(dump)
        self.path, self.places, self.about = self._inner.path, self._inner.places, self._inner.about

    def _load(self, at: int) -> tuple[LabelBatch, str]:
        if at == len(self) // 2:
            raise KeyboardInterrupt
        return self._inner._load(at)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_pack_keeps_an_existing_target(existing: bool, tree: Path, codec: LabelCodec, tmp_path: Path) -> None:
    out = tmp_path / "a.vql"
    if existing:
        out.write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        vqlabel.pack(Interrupted(tree), out, codec=codec, overwrite=existing)
    assert list(tmp_path.iterdir()) == ([out] if existing else [])
    assert not existing or out.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "tree"])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_unpack_keeps_an_existing_target(name: str, existing: bool, vql: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    if existing:
        vqlabel.unpack(vql, out)
    before = contents(tmp_path)

    def progress(_stage: str, _done: int, _total: int, _figures: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vqlabel.unpack(vql, out, overwrite=existing, progress=progress)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "where",
    [(ContainerWriter, "_write_chunk"), (ContainerWriter, "tensor"), (ColumnWriter, "_put"), (os, "fsync"), (os, "replace")],
    ids=lambda w: w[1],
)
def test_a_full_disk_leaves_nothing_and_the_message_has_the_cause(
    where: tuple[Any, str], tree: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*where, full)
    with pytest.raises(VqlabelError) as refused:
        vqlabel.pack(tree, tmp_path / "a.vql", codec=codec)
    assert str(refused.value) == f"{tmp_path / 'a.vql'}: cannot be written (No space left on device); nothing was left behind"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "tree", "a.codec"])
def test_a_full_disk_leaves_no_unpacked_or_saved_file(
    name: str, vql: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = vqlabel.save_codec if name == "a.codec" else vqlabel.unpack
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(VqlabelError, match=r"cannot be written \(No space left on device\); nothing was left behind"):
        write(codec if name == "a.codec" else vql, tmp_path / name)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, random, signal, sys, time
import vqlabel
from vqlabel.labels import open_labels

dump, codec_file, out = sys.argv[1:]
codec, source = vqlabel.load_codec(codec_file)[0], open_labels(dump)
random.seed(0)

def child(stop):
    process = os.fork()
    if process == 0:
        stop()
        vqlabel.pack(source, out, codec=codec, overwrite=True)
        os._exit(0)
    return process

def at_call(module, name, number):
    original, calls = getattr(module, name), []
    def stopping(*args, **options):
        calls.append(0)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)
    setattr(module, name, stopping)

def report(what):
    state = "absent"
    if os.path.exists(out):
        vqlabel.verify(out)
        state = "whole"
        os.remove(out)
    print(what, state, flush=True)

began = time.monotonic()
os.waitpid(child(lambda: None), 0)
takes = time.monotonic() - began
report("unharmed")
for _ in range(6):
    process = child(lambda: None)
    time.sleep(random.random() * takes)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    report("random")
for name in ("replace", "fsync"):
    number = 1
    while os.WIFSIGNALED(os.waitpid(child(lambda: at_call(os, name, number)), 0)[1]):
        report(name)
        number += 1
    os.remove(out)
"""


@pytest.fixture(scope="module")
def killed(codec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """`pack`, killed with SIGKILL at six random moments and at each step of publishing; the target's state after it."""
    folder = tmp_path_factory.mktemp("killed")
    np.save(folder / "dump.npy", np.random.default_rng(0).normal(size=(20, 1000, 40)).astype(np.float16))
    arguments = [folder / "dump.npy", codec_file, folder / "a.vql"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return folder, [line.split() for line in run.stdout.splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_killed_pack_leaves_a_complete_file_or_none(killed: tuple[Path, list[list[str]]]) -> None:
    folder, states = killed
    assert states[0] == ["unharmed", "whole"]
    assert [what for what, _ in states[1:7]] == ["random"] * 6
    assert "absent" in [state for _, state in states[1:7]]
    assert [state for what, state in states if what == "replace"] == ["absent"]
    at_fsync = [state for what, state in states if what == "fsync"]
    assert at_fsync == sorted(at_fsync), "absent until it is complete"
    assert at_fsync.count("absent") >= 2, "labels, then header"
    assert at_fsync[-1] == "whole", "the folder's, after the rename"
    left = [path.name for path in folder.iterdir() if path.name != "dump.npy"]
    assert len(left) <= 1, "each run removes what a killed run left"
    assert all(re.fullmatch(r"a\.vql\.[0-9a-f]{8}\.partial", name) for name in left)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_files_that_a_killed_pack_left_do_not_block_the_next_run(
    killed: tuple[Path, list[list[str]]], codec: LabelCodec, tmp_path: Path, dump: Path
) -> None:
    left = tmp_path / "a.vql.01234567.partial"
    left.mkdir()
    (left / "a.vql.lock").touch()
    (left / "a.vql").write_bytes(b"x" * 100_000)
    with pytest.raises(BadContainer, match=r"partial/a\.vql: not a \.vql file"):
        vqlabel.open(left / "a.vql")
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    vqlabel.verify(tmp_path / "a.vql")
    assert [path.name for path in tmp_path.iterdir()] == ["a.vql"]


def test_a_file_truncated_anywhere_does_not_open_or_does_not_verify(vql: Path, tmp_path: Path) -> None:
    data = vql.read_bytes()
    for size in (0, 1, 4096, len(data) // 2, len(data) - 33, len(data) - 1):
        (tmp_path / "cut.vql").write_bytes(data[:size])
        with pytest.raises(BadContainer, match=r"cut\.vql: .*(truncated|not a \.vql file|not sealed)"):
            vqlabel.open(tmp_path / "cut.vql")
