"""torch.save files and pickles of any age -> plain objects; forged ones are refused before NumPy or torch sees them."""

import argparse
import datetime
import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from forge import change_pickle, flip_bit

from vqlabel.errors import BadLabels
from vqlabel.labels.layouts.unpickle import unpickle

KINDS = ("?", "b", "B", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">i8", ">f2", ">f4", ">f8")


def saved(path: Path, item: Any) -> Path:
    torch.save(item, path)
    return path


def same(loaded: Any, array: np.ndarray) -> bool:
    """The same values, shape and type, in native byte order, and writable."""
    native = array.astype(array.dtype.newbyteorder("="))
    kind = type(loaded) is np.ndarray and loaded.dtype == native.dtype and loaded.dtype.isnative and loaded.flags.writeable
    return kind and loaded.shape == array.shape and loaded.tobytes() == native.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_is_loaded_as_it_was_saved(kind: str, order: Any, tmp_path: Path) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 7, kind, order=order)
    loaded = unpickle(saved(tmp_path / "a.tar", [array, 1, array[0, 0], array[:, :1]]))
    assert loaded[1] == 1 and same(loaded[0], array) and same(loaded[2], array[0, 0]) and same(loaded[3], array[:, :1])
    assert same(unpickle(saved(tmp_path / "b.tar", array)), array)


def test_arrays_of_old_versions_of_numpy_and_torch_load(tmp_path: Path) -> None:
    array, new, old = np.arange(6.0).reshape(2, 3), b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"
    file = saved(tmp_path / "a.tar", [array])
    change_pickle(file, lambda pickled: pickled.replace(new, old))
    assert same(unpickle(file)[0], array)
    change_pickle(file, lambda pickled: pickled.replace(old, new))
    assert same(unpickle(file)[0], array)
    torch.save([array], file, _use_new_zipfile_serialization=False)
    assert same(unpickle(file)[0], array)


@pytest.mark.parametrize(
    "array", [np.zeros(2, "c8"), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")]), np.ma.zeros(2)], ids=range(4)
)
def test_an_array_of_other_types_than_numbers_and_strings_is_refused(array: Any, tmp_path: Path) -> None:
    with pytest.raises(
        BadLabels,
        match=r"a\.tar: its pickle (contains NumPy values of type|uses _mareconstruct).* not supported.*save the labels alone",
    ):
        unpickle(saved(tmp_path / "a.tar", [array]))


def test_objects_beside_the_labels_are_read(tmp_path: Path) -> None:
    names, objects = np.array([["a.jpg", "\u00fc.jpg"]]), np.array(["a", None, 3], object)
    loaded = unpickle(saved(tmp_path / "a.pt", [names, np.array([b"a"]), objects, np.zeros((2, 0)), np.str_("x")]))
    assert same(loaded[0], names) and loaded[1].tolist() == [b"a"] and loaded[2] == ["a", None, 3]
    assert loaded[3].shape == (2, 0) and loaded[4] == "x"


DATA = bytes(48)
NO_DTYPE: OrderedDict[str, Any] = OrderedDict()  # torch lets a pickle set any attribute of it
NO_DTYPE.code = "|S8"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "state",
    [
        (1, (1 << 40, 1 << 40), "f8", False, DATA),
        (1, (7,), "f8", False, DATA),
        (1, (5,), "f8", False, DATA),
        (1, (-1, 2), "f8", False, DATA),
        (1, (-2, -3), "f8", False, DATA),
        (1, (6.0,), "f8", False, DATA),
        (1, (True,) * 3, "f8", False, DATA),
        (1, (6,) + (1,) * 100, "f8", False, DATA),
        (1, 6, "f8", False, DATA),
        (1, (6,), None, False, DATA),
        (1, (6,), 7, False, DATA),
        (1, (6,), NO_DTYPE, False, DATA),
        (1, (6,), "f8", False, [1.0] * 6),
        (1, (6,), "f8", False, None),
        (1, (6,), "f8", False, "x" * 48),
        (1, (6,), "f8"),
        7,
        None,
    ],
    ids=str,
)
def test_a_forged_array_state_never_reaches_numpy(state: Any, tmp_path: Path) -> None:
    """A state without a type keeps the type that was saved."""
    honest = np.arange(6.0)
    file = saved(tmp_path / "a.tar", [honest])

    def forge(pickled: bytes) -> bytes:
        start, stop = (
            pickled.index(b"(K\x01K\x06\x85"),
            len(pickled) - pickled[::-1].index(b"b"),
        )  # the state, and BUILD after it
        dtype = pickled[pickled.index(b"cnumpy\ndtype") : pickled.index(b"b\x89") + 1]
        new = pickletools.optimize(pickle.dumps(state, 2))[2:-1]
        return pickled[:start] + new.replace(b"X\x02\x00\x00\x00f8", dtype) + pickled[stop - 1 :]

    change_pickle(file, forge)
    with pytest.raises(BadLabels, match=r"a\.tar: damaged pickle"):
        unpickle(file)


def test_a_valid_state_set_by_the_same_helper_is_read(tmp_path: Path) -> None:
    """A state that fits its data is read, so the others are refused because of their content."""
    test = test_a_forged_array_state_never_reaches_numpy
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test((1, (2, 3), "f8", False, DATA), tmp_path)
    assert same(unpickle(tmp_path / "a.tar")[0], np.zeros((2, 3)))


def test_an_array_without_a_state_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.tar", [np.arange(6.0)])
    change_pickle(file, lambda pickled: b"\x80\x02](cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Re.")
    with pytest.raises(BadLabels, match=r"a\.tar: damaged pickle \(a NumPy array without its values\)"):
        unpickle(file)
    change_pickle(file, lambda pickled: b"\x80\x02](cnumpy._core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87Re.")
    with pytest.raises(BadLabels, match="a NumPy object that is not an array"):
        unpickle(file)


# --- protocols and containers

TENSOR = torch.arange(24.0).reshape(4, 6) - 7.5
FORMATS: list[dict[str, Any]] = [{"pickle_protocol": protocol} for protocol in (2, 3, 4, 5)]
FORMATS += [{**format_options, "_use_new_zipfile_serialization": False} for format_options in FORMATS]
FORMAT_IDS = [f"{'older' if len(format_options) > 1 else 'zip'}-{format_options['pickle_protocol']}" for format_options in FORMATS]


@pytest.mark.parametrize("how", FORMATS, ids=FORMAT_IDS)
def test_tensors_of_every_type_and_stride_load_from_every_protocol(how: dict[str, Any], tmp_path: Path) -> None:
    kinds = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.int16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.uint16,
    ]
    tensors = [TENSOR.to(kind) for kind in kinds]
    tensors += [
        TENSOR.t(),
        TENSOR[1:3, ::2],
        TENSOR[1:2].expand(3, 6),
        torch.empty(0, 6),
        torch.tensor(3.0),
        torch.nn.Parameter(TENSOR),
    ]
    tensors += [torch.view_as_complex(TENSOR.reshape(4, 3, 2).contiguous()).conj().imag]  # a negative view
    torch.save(tensors, tmp_path / "a.pt", **how)
    for loaded, tensor in zip(unpickle(tmp_path / "a.pt"), tensors, strict=True):
        assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)


@pytest.mark.parametrize("how", FORMATS, ids=FORMAT_IDS)
def test_arrays_containers_and_paths_load_from_every_protocol(how: dict[str, Any], tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    fixed = array.copy()
    fixed.flags.writeable = False  # protocol 5 stores read-only arrays differently
    arrays = [array, np.asfortranarray(array), array.transpose(1, 0, 2), fixed, array[:, :1], array[0, 0, 0]]
    twice = [TENSOR]
    item = {
        "arrays": arrays,
        "default": defaultdict(list, logits=array),
        "ordered": OrderedDict(a=1, b=(True, None, 2.5, 1 << 70, "\u00fc", b"\xff")),
        "counter": Counter("aab"),
        "paths": [PurePosixPath("/x/a.jpg"), PureWindowsPath("x/a.jpg"), Path("b")],
        "size": TENSOR.shape,
        "kind": torch.float16,
        "sets": [{1, 2}, frozenset("a")],
        "twice": [twice, twice],
    }
    torch.save(item, tmp_path / "a.pt", **how)
    loaded = unpickle(tmp_path / "a.pt")
    assert all(same(one, two) for one, two in zip(loaded["arrays"][:5], arrays, strict=False)) and loaded["arrays"][5] == 0
    assert type(loaded["default"]) is dict and same(loaded["default"]["logits"], array)
    assert (
        loaded["ordered"] == dict(item["ordered"])
        and list(loaded["ordered"]) == ["a", "b"]
        and loaded["counter"] == {"a": 2, "b": 1}
    )
    assert loaded["paths"] == ["/x/a.jpg", "x\\a.jpg", "b"]
    assert loaded["size"] == (4, 6) and loaded["kind"] == torch.float16 and loaded["sets"] == [{1, 2}, {"a"}]
    assert loaded["twice"][0] is loaded["twice"][1]


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_with_tensors_loads(protocol: int, tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"array": array, "tensor": TENSOR.half().t(), "name": "x"}, protocol))
    loaded = unpickle(tmp_path / "a.pkl")
    assert same(loaded["array"], array) and torch.equal(loaded["tensor"], TENSOR.half().t()) and loaded["name"] == "x"
    with (tmp_path / "a.pkl").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BadLabels, match="4 bytes behind its end"):
        unpickle(tmp_path / "a.pkl")


def test_a_file_in_the_other_byte_order_loads(tmp_path: Path) -> None:
    torch.save([TENSOR, TENSOR.half(), TENSOR.long()], tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for name in archive.namelist():
            data = archive.read(name)
            width = {"a/data/0": 4, "a/data/1": 2, "a/data/2": 8}.get(name, 1)
            data = b"big" if name == "a/byteorder" else np.frombuffer(data, f"u{width}").byteswap().tobytes()
            other.writestr(name, data)
    loaded = unpickle(tmp_path / "b.pt")
    assert torch.equal(loaded[0], TENSOR) and torch.equal(loaded[1], TENSOR.half()) and torch.equal(loaded[2], TENSOR.long())


# --- names in a pickle


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


class Record:
    """A class defined by a user."""


CODE = [
    (Calls(os.system, "x"), "posix.system"),
    (Calls(eval, "1"), "builtins.eval"),
    (Calls(getattr, 1, "real"), "builtins.getattr"),
    (Calls(subprocess.Popen, "x"), "subprocess.Popen"),
    (Calls(torch.load, "x"), "torch.serialization.load"),
    (Calls(np.load, "x"), "numpy.load"),
    ([Record(), Calls(print)], "builtins.print"),
]
CLASSES = [
    (Record(), "Record of the module test_unpickle"),
    (argparse.Namespace(lr=0.1), "Namespace of the module argparse"),
    (datetime.datetime(2024, 1, 1), "datetime of the module datetime"),
    (torch.nn.Linear(2, 2), "Linear of the module torch.nn.modules.linear"),
    (torch.eye(3).to_sparse(), "_rebuild_sparse_tensor of the module torch._utils"),
    (bytearray(3), "bytearray of the module builtins"),
]


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_message_distinguishes_code_from_unsupported_classes(protocol: int, tmp_path: Path) -> None:
    for item, name in CODE:
        torch.save({"logits": TENSOR, "more": item}, tmp_path / "a.pt", pickle_protocol=protocol)
        with pytest.raises(BadLabels) as refusal:
            unpickle(tmp_path / "a.pt")
        assert (
            str(refusal.value) == f"{tmp_path}/a.pt: its pickle calls {name}, which is code; it was not run. Do not use this dump"
        )
    for item, name in CLASSES:
        torch.save({"logits": TENSOR, "more": item}, tmp_path / "a.pt", pickle_protocol=protocol)
        with pytest.raises(BadLabels) as refusal:
            unpickle(tmp_path / "a.pt")
        assert f"uses {name}, which is not supported and was not run; save the labels alone" in str(refusal.value).replace(
            "tests.labels.", ""
        )


# --- forged and damaged files


def test_every_flipped_bit_of_a_tensor_is_detected(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", [TENSOR, 1])
    data, rng = file.read_bytes(), random.Random(0)
    start = data.index(TENSOR.numpy().tobytes())
    for _ in range(100):
        file.write_bytes(flip_bit(data, start + rng.randrange(TENSOR.numel() * 4), rng.randrange(8)))
        with pytest.raises(BadLabels, match=r"a\.pt: damaged torch\.save file \(Bad CRC-32 for file 'a/data/0'\)"):
            unpickle(file)


def archive(path: Path, pickled: bytes, **storages: bytes) -> Path:
    """A torch.save file of this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        for key, data in storages.items():
            file.writestr(f"a/data/{key}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(key: str, count: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The opcodes of a tensor, as torch writes them."""
    numbers = pickle.dumps((offset, shape, stride, False), 2)[2:-1]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + pickle.dumps(count, 2)[2:-1] + b"tQ"
    opcodes = pickletools.optimize(b"\x80\x02" + numbers + b".")[2:-1]
    start = opcodes.rindex(b"t") if opcodes.startswith(b"(") else len(opcodes)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + opcodes[1:start] + b"tR"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (tensor("k", 24, 0, (4, 7), (7, 1)), "a tensor reaches beyond its storage"),
        (tensor("k", 24, 1, (4, 6), (6, 1)), "a tensor reaches beyond its storage"),
        (tensor("k", 24, 0, (-4, 6), (6, 1)), "invalid shape, stride or type"),
        (tensor("k", 24, 23, (4, 6), (-6, 1)), "invalid shape, stride or type"),
        (tensor("k", 1 << 40, 0, (4, 6), (6, 1)), "storage k is not in the file, or has another size"),
        (tensor("k", 12, 0, (2, 6), (6, 1)), "storage k is not in the file, or has another size"),
        (tensor("other", 24, 0, (4, 6), (6, 1)), "storage other is not in the file"),
        (
            b"]("
            + text("x" * 999)
            + b"q\0"
            + b"c_codecs\nencode\nh\0"
            + text("latin1")
            + b"\x86R"
            + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 9000
            + b"e",
            "larger than the file",
        ),
        (b"h\7", "opcode BINGET has no valid operand"),
        (b"c_codecs\nencode\n)b", "a state for an object without one"),
        (b"]K\1\x85R", "a call of something that cannot be called"),
        (b"ctorch\nfloat32\n)R", "a call of something that cannot be called"),
        (b"\x82\1", "opcode EXT1, which labels do not need"),
        (b"\x80\x63N", "pickle protocol 99"),
        (b"ctorch.storage\n_load_from_bytes\nU\5hello\x85R", "a file in a file"),
    ],
    ids=range(15),
)
def test_forged_pickles_are_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=rf"a\.pt: damaged pickle \(.*{message}"):
        unpickle(archive(tmp_path / "a.pt", pickled, k=TENSOR.numpy().tobytes()))


def test_valid_pickles_made_by_the_same_helper_are_read_by_torch(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.pt", tensor("k", 24, 0, (4, 6), (6, 1)), k=TENSOR.numpy().tobytes())
    assert torch.equal(unpickle(file), TENSOR)


def test_a_file_of_the_older_format_without_its_storages_is_refused(tmp_path: Path) -> None:
    torch.save(TENSOR, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pt").read_bytes()
    keys = data.rindex(b"\x80\x02]")
    (tmp_path / "b.pt").write_bytes(data[:keys] + b"\x80\x02]." + bytes(17000))
    with pytest.raises(BadLabels, match="the storages that it lists are not those of its tensors"):
        unpickle(tmp_path / "b.pt")
    for stop in range(0, len(data), 7):
        (tmp_path / "b.pt").write_bytes(data[:stop])
        with pytest.raises(BadLabels, match=r"damaged pickle|empty file"):
            unpickle(tmp_path / "b.pt")


def test_a_duplicate_or_compressed_member_is_refused(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.pt", tensor("k", 24, 0, (4, 6), (6, 1)), k=TENSOR.numpy().tobytes())
    with zipfile.ZipFile(file, "a") as more, pytest.warns(UserWarning, match="Duplicate name"):
        more.writestr("a/data/k", bytes(96))
    with pytest.raises(BadLabels, match="is a zip archive"):
        unpickle(file)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("a/data.pkl", b"\x80\x02N.")
    file.write_bytes(buffer.getvalue())
    with pytest.raises(BadLabels, match="its members are compressed"):
        unpickle(file)
