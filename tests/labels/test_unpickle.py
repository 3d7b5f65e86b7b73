"""NumPy's arrays in torch.save files -> arrays, whatever their type, order and age; what forges one is refused before NumPy sees it."""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqlabel.errors import BadLabels
from vqlabel.labels.unpickle import unpickle

ChangePickle = Callable[..., None]
KINDS = ("?", "b", "B", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">i8", ">f2", ">f4", ">f8")


def saved(path: Path, item: Any) -> Path:
    torch.save(item, path)
    return path


def same(found: Any, array: np.ndarray) -> bool:
    """The same numbers in the same shape and type, in this machine's byte order, and writable."""
    native = array.astype(array.dtype.newbyteorder("="))
    kind = type(found) is np.ndarray and found.dtype == native.dtype and found.dtype.isnative and found.flags.writeable
    return kind and found.shape == array.shape and found.tobytes() == native.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_is_loaded_as_it_was_saved(kind: str, order: Any, tmp_path: Path) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 7, kind, order=order)
    found = unpickle(saved(tmp_path / "a.tar", [array, 1, array[0, 0], array[:, :1]]))
    assert found[1] == 1 and same(found[0], array) and same(found[2], array[0, 0]) and same(found[3], array[:, :1])
    assert same(unpickle(saved(tmp_path / "b.tar", array)), array)


def test_arrays_of_old_numpy_and_old_torch_load(tmp_path: Path, change_pickle: ChangePickle) -> None:
    array, new, old = np.arange(6.0).reshape(2, 3), b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"
    file = saved(tmp_path / "a.tar", [array])
    change_pickle(file, lambda pickled: pickled.replace(new, old))
    assert same(unpickle(file)[0], array)
    change_pickle(file, lambda pickled: pickled.replace(old, new))
    assert same(unpickle(file)[0], array)
    torch.save([array], file, _use_new_zipfile_serialization=False)
    assert same(unpickle(file)[0], array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1], object),
        np.array(["a"]),
        np.array([b"a"]),
        np.zeros(2, "c8"),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros((2, 0)),
        np.ma.zeros(2),
    ],
    ids=range(8),
)
def test_an_array_of_anything_but_numbers_is_refused(array: Any, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"a\.tar: (no readable torch\.save file|the pickle wants more than tensors)"):
        unpickle(saved(tmp_path / "a.tar", [array]))


DATA = bytes(48)
NO_DTYPE: OrderedDict[str, Any] = OrderedDict()  # what torch lets a pickle give any attribute
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
def test_a_forged_array_never_reaches_numpy(state: Any, tmp_path: Path, change_pickle: ChangePickle) -> None:
    """The type is the one that was saved where the state names one."""
    honest = np.arange(6.0)
    file = saved(tmp_path / "a.tar", [honest])

    def forge(pickled: bytes) -> bytes:
        start, stop = (
            pickled.index(b"(K\x01K\x06\x85"),
            len(pickled) - pickled[::-1].index(b"b"),
        )  # its state, and the BUILD behind it
        dtype = pickled[pickled.index(b"cnumpy\ndtype") : pickled.index(b"b\x89") + 1]
        new = pickletools.optimize(pickle.dumps(state, 2))[2:-1]
        return pickled[:start] + new.replace(b"X\x02\x00\x00\x00f8", dtype) + pickled[stop - 1 :]

    change_pickle(file, forge)
    with pytest.raises(BadLabels, match=r"a\.tar: (no readable torch\.save file|damaged pickle)"):
        unpickle(file)


def test_the_forger_above_forges(tmp_path: Path, change_pickle: ChangePickle) -> None:
    """A state that fits its data is read, so the others are refused for what they say."""
    test = test_a_forged_array_never_reaches_numpy
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test((1, (2, 3), "f8", False, DATA), tmp_path, change_pickle)
    assert same(unpickle(tmp_path / "a.tar")[0], np.zeros((2, 3)))


def test_an_array_without_a_state_is_refused(tmp_path: Path, change_pickle: ChangePickle) -> None:
    file = saved(tmp_path / "a.tar", [np.arange(6.0)])
    change_pickle(file, lambda pickled: b"\x80\x02](cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Re.")
    with pytest.raises(BadLabels, match=r"a\.tar: no readable torch\.save file"):
        unpickle(file)
    change_pickle(file, lambda pickled: b"\x80\x02](cnumpy._core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87Re.")
    with pytest.raises(BadLabels, match="a NumPy object that is no array"):
        unpickle(file)
