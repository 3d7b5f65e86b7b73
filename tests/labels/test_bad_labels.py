"""Damaged and hostile dumps, and files that are not dumps, are refused with what and where; no code in them is run."""

import io
import json
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import change_pickle
from numpy.typing import NDArray
from safetensors.torch import save_file

from vqlabel.errors import BadLabels, UsageError, VqlabelError
from vqlabel.labels import open_labels
from vqlabel.labels.layouts.tree import ORDER_FILE
from vqlabel.labels.layouts.unpickle import unpickle

Write = Callable[..., Path]
Draw = Callable[..., torch.Tensor]
Items = Callable[..., list[Any]]
ReadAll = Callable[..., NDArray[np.floating]]

LOGITS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
PROBS = np.full((6, 5), 0.2, np.float32)


def npy(shape: Any, descr: Any = "<f4", fortran: bool = False, data: bytes = bytes(120)) -> bytes:
    """A .npy file with any header."""
    return npy_text(repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode(), data)


def npy_text(header: bytes, data: bytes = bytes(120)) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(path: Path, member: bytes, name: str = "logits.npy") -> Path:
    """A compressed .npz of one member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, member)
    return path


# --- arguments


@pytest.mark.parametrize("name", ["missing.npy", "missing", "a" * 5000])
def test_a_missing_dump_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or directory; pass a dump"):
        open_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layout": "fkd2"}, "layout is 'fkd2'; it must be one of sre2l, lpld"),
        ({"domain": "logprobs"}, "domain is 'logprobs'; it must be one of logits, probs"),
    ],
)
def test_an_unknown_layout_or_domain_is_refused(how: dict[str, str], message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LOGITS)
    with pytest.raises(UsageError, match=message):
        open_labels(tmp_path / "a.npy", **how)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="the folder is empty"):
        open_labels(tmp_path)
    (tmp_path / "notes.txt").write_text("no labels")
    with pytest.raises(BadLabels, match=r"contains neither epoch_E/batch_B\.tar, nor \.npy"):
        open_labels(tmp_path)
    with pytest.raises(BadLabels, match=r"contains no epoch_E/batch_B\.tar"):
        open_labels(tmp_path, layout="sre2l")
    with pytest.raises(BadLabels, match="a dump has at least one shard"):
        open_labels(tmp_path, layout="arrays")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3")
    with pytest.raises(
        BadLabels, match=r"\.csv is not a format of labels; text takes five times .* save the array with numpy\.save"
    ):
        open_labels(tmp_path / "a.csv")
    with pytest.raises(BadLabels, match="not a folder; SRe2L's dump is a folder"):
        open_labels(tmp_path / "a.csv", layout="sre2l")
    with pytest.raises(BadLabels, match=r"a\.csv: is a text file"):
        open_labels(tmp_path / "a.csv", layout="arrays")
    with pytest.raises(BadLabels, match="is a device, not a file"):
        open_labels(os.devnull)


# --- the labels


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_label_that_is_not_finite_is_refused_with_file_and_row(
    dtype: torch.dtype, bad: float, tmp_path: Path, draw: Draw, write_array: Write, sre2l_items: Items, write_sre2l: Write
) -> None:
    labels = draw(6, 5, dtype=dtype)
    labels[4, 3] = bad
    remedy = "write -10000 for a masked class" if bad < 0 else "regenerate or drop this row"
    message = rf"row 4: class 3 is {bad}; labels must be finite: {remedy}"
    for file in ["a.safetensors"] if dtype == torch.bfloat16 else ["a.safetensors", "a.npy", "a.npz"]:
        with pytest.raises(BadLabels, match=rf"{file}, {message}"):
            open_labels(write_array(tmp_path / file, labels)).read(0)
    write_sre2l(tmp_path / "tree", sre2l_items(draw(6, 5, dtype=dtype)))
    write_sre2l(tmp_path / "tree", sre2l_items(labels), batch=1)
    with pytest.raises(BadLabels, match=rf"epoch_0/batch_1\.tar, {message}"):
        open_labels(tmp_path / "tree").read(1)


def test_the_message_for_a_later_batch_has_its_first_row(tmp_path: Path) -> None:
    labels = np.tile(LOGITS, (2, 1000, 1))
    labels[1, 5000, 2] = np.nan
    np.save(tmp_path / "a.npy", labels)
    with pytest.raises(BadLabels, match=r"a\.npy, rows from 10096, row 904: class 2 is nan"):
        list(open_labels(tmp_path / "a.npy"))


def test_probabilities_without_domain_probs_are_refused(
    tmp_path: Path, sre2l_items: Items, write_sre2l: Write, read_all: ReadAll
) -> None:
    np.save(tmp_path / "a.npy", PROBS)
    write_sre2l(tmp_path / "tree", sre2l_items(torch.from_numpy(PROBS)))
    for path in (tmp_path / "a.npy", tmp_path / "tree"):
        with pytest.raises(
            BadLabels, match="6 of 6 sampled rows are non-negative and sum to 1, so these are probabilities; pass --domain probs"
        ):
            read_all(path)
        assert (read_all(path, domain="probs") == PROBS).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            [0.2, 0.2, 0.2, 0.2, 0.3],
            "row 3: sums to 1.1 .*it is not a distribution, unlike other rows of this dump; correct it, or leave it out",
        ),
        ([-0.2, 0.4, 0.2, 0.2, 0.4], "values range from -0.2 to 0.4, so these are not probabilities; pass --domain logits"),
        (
            [0] * 5,
            r"row 3: all zero \(1 of the 6 rows of this batch\): were these labels never written\? Label these images again, or leave them out",
        ),
    ],
)
def test_rows_that_are_not_probabilities_are_refused(
    row: list[float], message: str, tmp_path: Path, sre2l_items: Items, write_sre2l: Write, read_all: ReadAll
) -> None:
    labels = PROBS.copy()
    labels[3] = row
    np.savez(tmp_path / "a.npz", probs=labels)
    write_sre2l(tmp_path / "tree", sre2l_items(torch.from_numpy(labels)))
    for path, how in ((tmp_path / "a.npz", {}), (tmp_path / "tree", {"domain": "probs"})):
        with pytest.raises(BadLabels, match=message):
            read_all(path, **how)


# --- arrays


@pytest.mark.parametrize(
    "array",
    [LOGITS.astype(np.int64), LOGITS.astype(np.uint8), LOGITS > 0, LOGITS + 0j],
    ids=lambda array: array.dtype.str,
)
def test_values_that_are_not_floats_are_refused(array: NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", logits=array)
    for file in ("a.npy", "a.npz"):
        with pytest.raises(
            BadLabels,
            match=rf"{file}: type .*; (labels must be float16, bfloat16 or float32|integers are hard labels or quantized outputs; save the teacher's float)",
        ):
            open_labels(tmp_path / file)
    if array.dtype.isnative and array.dtype.kind != "c":
        save_file({"logits": torch.from_numpy(array)}, tmp_path / "a.safetensors")
        with pytest.raises(BadLabels, match=r"tensor 'logits' is [FIUBOL0-9]+; labels must be F16, BF16, F32, F64"):
            open_labels(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shape", [(), (5,), (6, 1), (0, 5), (6, 0), (3, 0, 5), (2, 2, 2, 5), (2, (1 << 20) + 1)])
def test_a_shape_that_is_not_of_labels_is_refused(shape: tuple[int, ...], tmp_path: Path, write_array: Write) -> None:
    for file in ("a.npy", "a.npz", "a.safetensors"):
        path = write_array(tmp_path / file, torch.zeros(shape, dtype=torch.float16))
        with pytest.raises(BadLabels, match=rf"{file}: shape \[.*\]; labels must be \[n, C\] or \[epochs, n, C\]"):
            open_labels(path)


def test_shards_of_different_teachers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "shard_0.npy", LOGITS)
    for other, message in (
        (LOGITS[:, :4], r"shard_1\.npy: 4 classes, but .*shard_0\.npy has 5: a dump has one teacher"),
        (LOGITS.astype(np.float16), r"shard_1\.npy: F16 \[n, C\] differs from .*shard_0\.npy"),
        (LOGITS[None], r"shard_1\.npy: F32 \[epochs, n, C\] differs from .*shard_0\.npy"),
    ):
        np.save(tmp_path / "shard_1.npy", other)
        with pytest.raises(BadLabels, match=message):
            open_labels(tmp_path)


def test_several_arrays_without_a_name_are_refused(tmp_path: Path, draw: Draw) -> None:
    np.savez(tmp_path / "a.npz", x=LOGITS, y=LOGITS)
    np.savez(tmp_path / "b.npz", logits=LOGITS, probs=PROBS)
    save_file({"x": draw(6, 5), "y": draw(6, 5)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "none.npz")
    for file in ("a.npz", "b.npz", "a.safetensors", "none.npz"):
        with pytest.raises(
            BadLabels,
            match=r"several of its arrays may be the labels: '(x|logits)' .*; name one with --array (x|logits)|contains no arrays",
        ):
            open_labels(tmp_path / file)


def test_an_unknown_domain_in_the_metadata_is_refused(tmp_path: Path, draw: Draw) -> None:
    save_file({"logits": draw(6, 5)}, tmp_path / "a.safetensors", {"domain": "nats"})
    with pytest.raises(BadLabels, match=r"a\.safetensors: domain in the metadata is 'nats'; it must be one of logits, probs"):
        open_labels(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"garbage" * 50, b"PK\3\4" + bytes(100), bytes(1000)], ids=range(5))
def test_random_bytes_are_refused(data: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(BadLabels, match=rf"a{suffix}: (not readable as a {suffix} file \(|is an? .* file|is a zip archive)"):
        open_labels(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("file", ["a.npy", "a.npz", "a.packed.npz", "a.safetensors"])
def test_every_truncation_is_refused(file: str, tmp_path: Path, draw: Draw, write_array: Write, read_all: ReadAll) -> None:
    path = write_array(tmp_path / file, draw(6, 5))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"not readable|truncated|is (an empty|a text) file"):
            read_all(path)


def test_a_file_with_the_suffix_of_another_format_is_refused(tmp_path: Path, write_array: Write, draw: Draw) -> None:
    for written in (".npy", ".npz", ".safetensors"):
        data = write_array(tmp_path / f"a{written}", draw(6, 5)).read_bytes()
        for named in {".npy", ".npz", ".safetensors"} - {written}:
            (tmp_path / f"b{named}").write_bytes(data)
            with pytest.raises(
                BadLabels,
                match=rf"b{named}: (not readable as a {named} file|is a ({written} file|zip archive), not a {named} file)",
            ):
                open_labels(tmp_path / f"b{named}")


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    array = np.array([[Exploit(marker)] * 5] * 6, object)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", logits=array)
    for file, message in (("a.npy", "Python objects"), ("a.npz", "type object; labels must be")):
        with pytest.raises(BadLabels, match=message):
            open_labels(tmp_path / file)
    assert not marker.exists()


def test_a_column_major_array_in_an_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", logits=np.asfortranarray(LOGITS))
    with pytest.raises(BadLabels, match=r"logits\.npy is in column-major order; save it with np\.ascontiguousarray"):
        open_labels(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "header",
    [
        b"((((",
        b"{[]: 1}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (6, 5",
        b"1" * 9000,
        b"[" * 5000,
        b"{}",
        b"\xff" * 40,
    ],
    ids=range(7),
)
def test_an_invalid_header_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_text(header))
    npz(tmp_path / "a.npz", npy_text(header))
    for file in ("a.npy", "a.npz"):
        with pytest.raises(BadLabels, match=rf"{file}: not readable"):
            open_labels(tmp_path / file)


@pytest.mark.parametrize("shape", [(-6, 5), (6, -5), (-2, -3, 5), (1 << 32, 5), (5, 1 << 70), (3, 1 << 28, 5), (3, 1 << 20)])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_shape_that_the_file_cannot_hold_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(shape))
    npz(tmp_path / "a.npz", npy(shape))
    for file in ("a.npy", "a.npz"):
        with pytest.raises(BadLabels, match=rf"{file}: (not readable|shape \[)"):
            open_labels(tmp_path / file)


def test_a_zip_that_declares_more_than_deflate_can_expand_to_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", npy((1 << 27, 5)))
    data, size = path.read_bytes(), struct.pack("<I", len(npy((1 << 27, 5))))
    assert data.count(size) == 2  # in the local header and in the directory
    path.write_bytes(data.replace(size, struct.pack("<I", (1 << 32) - 2)))
    with pytest.raises(
        BadLabels, match=r"shape \[134217728, 5\] needs 2684354560 bytes, but logits\.npy has \d+; truncated or forged"
    ):
        open_labels(path)


def test_a_header_that_expands_to_gigabytes_is_not_expanded(tmp_path: Path) -> None:
    member = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(32 << 20)
    path = npz(tmp_path / "a.npz", member)
    assert path.stat().st_size < 1 << 16
    tracemalloc.start()
    with pytest.raises(BadLabels, match=r"not readable as a \.npz file .*array header"):
        open_labels(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


# --- SRe2L's tree


class Exploit:
    """Unpickling it calls os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_a_pickle_that_runs_commands_is_refused_and_runs_nothing(
    tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write, recwarn: pytest.WarningsRecorder
) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Exploit(marker)))
    assert marker.exists()  # the exploit works
    marker.unlink()
    items = sre2l_items(draw(6, 5))
    for number in range(7):
        armed = [*items[:number], Exploit(marker), *items[number + 1 :]]
        for how in ({}, {"_use_new_zipfile_serialization": False}):
            write_sre2l(tmp_path / "tree", armed, **how)
            with pytest.raises(
                BadLabels, match=r"its pickle calls posix\.system, which is code; it was not run\. Do not use this dump"
            ):
                open_labels(tmp_path / "tree")
            assert not marker.exists()
    bare = tmp_path / "tree/epoch_0/batch_0.tar"
    for protocol in (2, 4):
        bare.write_bytes(pickle.dumps([*items, Exploit(marker)], protocol))
        with pytest.raises(BadLabels, match=r"batch_0\.tar: its pickle calls posix\.system, which is code"):
            open_labels(tmp_path / "tree")
        assert not marker.exists()
    assert not recwarn.list  # no warning beside the error


@pytest.mark.parametrize(
    "item", [np.array([["a"] * 5] * 6), np.array([None], object), np.str_("x"), Path("x"), np.dtype("f8")], ids=type
)
def test_objects_that_are_not_tensors_are_refused(
    item: Any, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    write_sre2l(tmp_path, [*sre2l_items(draw(6, 5))[:5], item])
    with pytest.raises(BadLabels, match=r"item 5 is (<U1|list|str|NumpyType)"):
        open_labels(tmp_path)


@pytest.mark.parametrize("state", [(3, "<", {}, "|", 0, 63), (2, "<", {"a": 0}, 1 << 40, 63, -1), (3, "<"), (3,), (3, 5, None), 7])
def test_a_forged_dtype_state_never_reaches_numpy(
    state: Any, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    """NumPy's dtype.__setstate__ trusts its argument: the first two states usually crash the process there."""
    items = sre2l_items(draw(6, 5))
    items[3] = 0.5  # so that the only dtype in the pickle is that of the box

    def forge(pickled: bytes) -> bytes:
        start = pickled.index(b"(K\x03X\x01\x00\x00\x00<")
        stop = pickled.index(b"b", pickled.index(b"K\x00t", start))
        return pickled[:start] + pickletools.optimize(pickle.dumps(state, 2))[2:-1] + pickled[stop:]

    file = write_sre2l(tmp_path, items)
    assert [type(v) for v in unpickle(file)[4]] == [int] * 4  # else NumPy was called, and the rest of the test may crash
    change_pickle(file, forge)
    if isinstance(state, tuple) and state[1:2] == ("<",):
        box = open_labels(tmp_path).read(0).mix_box
        assert box is not None and [type(v) for v in box] == [int] * 4 and list(box) == items[4]
    else:
        with pytest.raises(BadLabels, match=r"damaged pickle \(a NumPy type without a byte order\)"):
            open_labels(tmp_path)


def test_a_compressed_batch_is_not_expanded(tmp_path: Path, sre2l_items: Items, write_sre2l: Write) -> None:
    file = write_sre2l(tmp_path, sre2l_items(torch.zeros(1000, 1000)))
    change_pickle(file, bytes, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadLabels, match=r"its members are compressed, or have more bytes \(4\d{6}\) than the file"):
        open_labels(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"garbage" * 50, b"PK\3\4" + bytes(100), bytes(1000), pickle.dumps([1], 2), b"\x80\x02]."], ids=range(6)
)
def test_a_file_that_torch_did_not_save_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "epoch_0").mkdir()
    (tmp_path / "epoch_0" / "batch_0.tar").write_bytes(data)
    with pytest.raises(
        BadLabels, match=r"batch_0\.tar: (is (an empty|a text) file|is a file of zero bytes|damaged|contains a list of [01])"
    ):
        open_labels(tmp_path)


def test_every_truncated_batch_is_refused(
    tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write, read_all: ReadAll
) -> None:
    file = write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    data = file.read_bytes()
    for size in range(0, len(data), 13):
        file.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"batch_0\.tar: (is an empty file|damaged torch\.save file)"):
            read_all(tmp_path)


def test_a_batch_that_cannot_be_opened_is_refused(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    (tmp_path / "epoch_0" / "batch_1.tar").mkdir()
    (tmp_path / "epoch_0" / "batch_2.tar").symlink_to(tmp_path / "gone")
    for at, why in ((1, "is a folder, not a file"), (2, r"No such file or directory; it existed when the dump was opened")):
        with pytest.raises(BadLabels, match=rf"batch_{at}\.tar: {why}"):
            open_labels(tmp_path).read(at)


def deep(levels: int) -> list[Any]:
    item: list[Any] = []
    for _ in range(levels):
        item = [item]
    return item


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([1, 2, 3, 4, 5], "contains a list of 5; a batch of SRe2L is a list of 6"),
        ([1] * 9, "contains a list of 9; a batch of SRe2L is a list of 6"),
        ({"logits": torch.ones(2, 2)}, "contains dict; a batch of SRe2L"),
        (torch.ones(6, 5), "contains Tensor; a batch of SRe2L"),
        (None, "contains NoneType; a batch of SRe2L"),
    ],
)
def test_a_file_that_is_not_a_list_of_six_is_refused(items: Any, message: str, tmp_path: Path, write_sre2l: Write) -> None:
    write_sre2l(tmp_path, items)
    with pytest.raises(BadLabels, match=message):
        open_labels(tmp_path)


BAD_ITEMS = [
    (5, None, r"item 5 is NoneType; it must be logits \[b, C\], fp16, bf16, fp32 or fp64, and not empty"),
    (5, torch.ones(6, 5, dtype=torch.int64), r"item 5 is torch\.int64 \[6, 5\]; it must be logits"),
    (5, np.ones((6, 5), np.int32), r"item 5 is torch\.int32 \[6, 5\]; it must be logits"),
    (5, torch.ones(6), r"item 5 is torch\.float32 \[6\]"),
    (5, torch.ones(6, 1), r"item 5 is torch\.float32 \[6, 1\]"),
    (5, torch.ones(0, 5), r"item 5 is torch\.float32 \[0, 5\]"),
    (5, torch.ones(2, 6, 5), r"item 5 is torch\.float32 \[2, 6, 5\]"),
    (5, torch.eye(6).to_sparse(), r"its pickle uses _rebuild_sparse_tensor of the module torch\._utils, which is not supported"),
    (5, torch.ones(6, 5, device="meta"), r"its pickle uses _rebuild_meta_tensor_no_storage of the module torch\._utils.*dense"),
    (5, torch.ones(1, 1).expand(1 << 40, 1000), r"item 5 spans 4398046511104000 bytes in a file of \d+"),
    (5, [[[1.0]]], r"item 5 is list \[list\]; it must be logits"),
    (0, torch.ones(6, 3), r"item 0 is torch\.float32 \[6, 3\]; it must be torch\.float32 \[6, 4\] or None"),
    (0, torch.ones(5, 4), r"item 0 is torch\.float32 \[5, 4\]; it must be torch\.float32 \[6, 4\] or None"),
    (0, torch.ones(6, 4).double(), r"item 0 is torch\.float64 \[6, 4\]; it must be torch\.float32"),
    (1, torch.ones(6, 6), r"item 1 is torch\.float32 \[6, 6\]; it must be torch\.float32 \[6, 7\] or None"),
    (1, [True] * 6, r"item 1 is list \[True, True, True, True, True\]; it must be torch\.bool"),
    (2, torch.zeros(6, dtype=torch.int32), r"item 2 is torch\.int32 \[6\]; it must be torch\.int64 \[6\] or None"),
    (2, torch.tensor([0, 1, 2, 3, 4, 6]), r"mix_index has values outside 0\.\.5, the slots of this batch"),
    (2, torch.tensor([0, 1, 2, 3, 4, -1]), r"mix_index has values outside 0\.\.5, the slots of this batch"),
    (3, "0.5", r"mix_lam is str; it must be a number in 0\.\.1 or None"),
    (3, torch.tensor(0.5), r"mix_lam is torch\.float32 \[\]; it must be a number"),
    (3, float("nan"), r"mix_lam is nan; it must be a number"),
    (3, 1.5, r"mix_lam is 1\.5; it must be a number in 0\.\.1"),
    (3, 10**400, r"mix_lam is int; it must be a number in 0\.\.1"),
    (4, [1, 2, 3], r"mix_bbox is list \[1, 2, 3\]; it must be 4 non-negative integers or None"),
    (4, [1, 2, 3, -4], r"mix_bbox is list \[1, 2, 3, -4\]; it must be 4 non-negative"),
    (4, [1, 2, 3, 4.0], r"mix_bbox is list \[1, 2, 3, 4\.0\]; it must be 4 non-negative"),
    (4, [1, 2, 3, 1 << 31], r"mix_bbox is list \[1, 2, 3, 2147483648\]; it must be 4"),
    (4, torch.arange(4), r"mix_bbox is torch\.int64 \[4\]; it must be 4 non-negative"),
    (4, deep(300), r"mix_bbox is list \[list\]; it must be 4 non-negative"),
]


@pytest.mark.parametrize(("number", "item", "message"), BAD_ITEMS, ids=[f"{i}-{case[0]}" for i, case in enumerate(BAD_ITEMS)])
def test_an_item_that_does_not_fit_is_refused(
    number: int, item: Any, message: str, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    items = sre2l_items(draw(6, 5))
    items[number] = item
    write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    file = write_sre2l(tmp_path, items, batch=1)
    with pytest.raises(BadLabels, match=rf"{file}: {message}"):
        open_labels(tmp_path).read(1)


def test_a_deeply_nested_item_is_refused(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    n = 100_000
    file = write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    change_pickle(file, lambda pickled: b"\x80\x02](NNNNN" + b"]" * n + b"a" * (n - 1) + b"e.")
    with pytest.raises(BadLabels, match=r"item 5 is list \[list\]; it must be logits"):
        open_labels(tmp_path)


def test_batches_of_different_teachers_are_refused(tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    write_sre2l(tmp_path, sre2l_items(draw(6, 4)), batch=1)
    write_sre2l(tmp_path, sre2l_items(draw(6, 5).half()), batch=2)
    for at, message in (
        (1, "4 classes; the first batch has 5: all labels of a dump have one teacher"),
        (2, "labels are F16, but those of the first batch are F32"),
    ):
        with pytest.raises(BadLabels, match=rf"batch_{at}\.tar: {message}"):
            open_labels(tmp_path).read(at)


def test_two_files_with_the_number_of_one_batch_are_refused(
    tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    file = write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    os.link(file, file.with_name("batch_00.tar"))
    with pytest.raises(BadLabels, match=r"is the same batch as .*batch_0+\.tar; remove one"):
        open_labels(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"0": 7}',
        '{"x": [0]}',
        '{"-1": [0]}',
        '[["0", [0]]]',
        '{"0": [0.0]}',
        '{"0": [-1]}',
        '{"0": [2147483648]}',
        '{"0": [1e400]}',
        '{"0": [[0]]}',
        '{"0": ["0"]}',
        '{"0": [null]}',
        '{"0": [[0], 1]}',
        '{"0": [true]}',
        f'{{"0": [{10**400}]}}',
        "[" * 100_000,
        "\udcff",
    ],
    ids=range(20),
)
def test_a_malformed_order_file_is_refused(text: str, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write) -> None:
    write_sre2l(tmp_path, sre2l_items(draw(6, 5)))
    (tmp_path / ORDER_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        BadLabels, match=rf"{ORDER_FILE}: (not an order file \(.*it must map epochs to lists of image indices|is an empty file)"
    ):
        open_labels(tmp_path)


@pytest.mark.parametrize("again", ["0", "00"])
def test_an_order_file_with_two_orders_for_an_epoch_is_refused(
    again: str, tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    write_sre2l(tmp_path, sre2l_items(draw(4, 5)))
    (tmp_path / ORDER_FILE).write_text(f'{{"0": [0,1,2,3], "1": [0], "{again}": [3,2,1,0]}}')
    with pytest.raises(BadLabels, match=rf"{ORDER_FILE}: has two orders for 0; remove one of them"):
        open_labels(tmp_path)


def test_an_order_that_does_not_fit_the_batches_is_refused(
    tmp_path: Path, draw: Draw, sre2l_items: Items, write_sre2l: Write
) -> None:
    for epoch, batch in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 2)):
        write_sre2l(tmp_path, sre2l_items(draw(6, 5)), epoch, batch)
    (tmp_path / ORDER_FILE).write_text(json.dumps({"0": list(range(11)), "2": list(range(18))}))
    for at, message in (
        (1, r"batch_1\.tar: its records end at 12, but the order of epoch 0 has 11 images"),
        (2, rf"{ORDER_FILE}: has no order for epoch 1, which the dump contains"),
        (4, r"batch_2\.tar: batch 1 of epoch 2 is missing, so the images of later batches are unknown"),
    ):
        with pytest.raises(BadLabels, match=message):
            open_labels(tmp_path).read(at)
    (tmp_path / ORDER_FILE).unlink()
    (tmp_path / ORDER_FILE).mkdir()
    with pytest.raises(BadLabels, match="is a folder, not a file"):
        open_labels(tmp_path)


# --- random damage

KINDS = ("a.npy", "a.npz", "a.packed.npz", "a.safetensors", "tar", "old.tar", "order")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused_or_gives_finite_labels(
    kind: str, tmp_path: Path, draw: Draw, write_array: Write, sre2l_items: Items, write_sre2l: Write
) -> None:
    path = tmp_path / ("tree" if kind in KINDS[4:] else kind)
    if path.suffix:
        file = write_array(path, draw(6, 5))
    else:
        file = write_sre2l(path, sre2l_items(draw(6, 5)), _use_new_zipfile_serialization=kind != "old.tar")
        (path / ORDER_FILE).write_text(json.dumps({"0": list(range(6))}))
        file = path / ORDER_FILE if kind == "order" else file
    whole, rng, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(200):
        data = bytearray(whole)
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del data[at:]
        else:
            data[at] ^= bit if rng.random() < 0.5 else rng.randrange(1, 256)
        file.write_bytes(data)
        try:
            source = open_labels(path)
            assert all(batch.labels.shape[1] == source.classes and np.isfinite(batch.labels).all() for batch in source)
        except VqlabelError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{kind}, byte {at} of {len(whole)}: {error!r}")
    assert 20 < refused <= 200


def test_the_helpers_above_write_files_that_are_read(
    tmp_path: Path, read_all: ReadAll, sre2l_items: Items, write_sre2l: Write
) -> None:
    data = npy((6, 5), data=LOGITS.tobytes())
    (tmp_path / "a.npy").write_bytes(data)
    npz(tmp_path / "a.npz", data)
    write_sre2l(tmp_path / "tree", sre2l_items(torch.from_numpy(LOGITS)))
    for path in (tmp_path / "a.npy", tmp_path / "a.npz", tmp_path / "tree"):
        assert (read_all(path) == LOGITS).all()
    assert (np.load(io.BytesIO(data)) == LOGITS).all()
