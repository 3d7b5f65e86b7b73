"""The axes of an array in every type of file: which are dropped, which are epochs, and which a user may pass."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelSource, Place, open_labels
from vqlabel.labels.layouts.axes import read_axes
from vqlabel.labels.layouts.rows import BATCH_RECORDS

FILES = ("a.npy", "columns.npy", "a.npz", "a.safetensors", "a.pt", "a.h5")


def write(path: Path, array: np.ndarray) -> Path:
    if path.name == "columns.npy":
        np.save(path, np.asfortranarray(array))
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, logits=array)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(array), path)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"logits": np.ascontiguousarray(array)}, path)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["logits"] = array
    return path


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


def images_of(source: LabelSource) -> list[list[int]]:
    return [[] if batch.image is None else batch.image.tolist() for batch in source]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("shape", [(500, 1, 10), (500, 10, 1), (500, 10, 1, 1), (500, 1, 10, 1)])
def test_axes_of_length_one_are_dropped_and_noted(shape: tuple[int, ...], file: str, tmp_path: Path) -> None:
    z = draw(*shape)
    source = open_labels(write(tmp_path / file, z))
    assert source.notes == [f"{tmp_path / file}: shape {list(shape)} is read as [500, 10]"]
    assert (np.concatenate([batch.labels for batch in source]) == z.reshape(500, 10)).all()


@pytest.mark.parametrize("file", FILES)
def test_three_axes_are_read_as_epochs_images_classes_with_a_note(file: str, tmp_path: Path) -> None:
    z = draw(7, 6, 5)
    source = open_labels(write(tmp_path / file, z))
    assert source.notes == [
        f"{tmp_path / file}: read as 7 epochs of 6 images; if the first axis is images, pass --axes images,views,classes"
    ]
    assert source.places == [Place(epoch, 0) for epoch in range(7)] and images_of(source) == [list(range(6))] * 7
    assert (np.stack([batch.labels for batch in source]) == z).all()
    assert open_labels(tmp_path / file, axes="epochs,images,classes").notes == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("axes", ["images,views,classes", "images,epochs,classes", "images, crops, classes"])
def test_the_first_axis_can_be_images(axes: str, file: str, tmp_path: Path) -> None:
    z = draw(BATCH_RECORDS + 9, 3, 5)
    source = open_labels(write(tmp_path / file, z), axes=axes)
    assert (source.order, source.classes, source.notes) == ("rows", 5, [])
    assert source.places == [Place(epoch, batch) for epoch in range(3) for batch in range(2)]
    assert [image for batch in images_of(source)[:2] for image in batch] == list(range(len(z)))
    assert (np.concatenate([batch.labels for batch in source]).reshape(3, -1, 5) == z.transpose(1, 0, 2)).all()


def test_shards_with_images_first_continue_with_further_images(tmp_path: Path) -> None:
    z = draw(8, 3, 5)
    np.save(tmp_path / "part-0.npy", z[:6])
    np.save(tmp_path / "part-1.npy", z[6:])
    source = open_labels(tmp_path, axes="images,views,classes")
    assert source.places == [Place(epoch, batch) for epoch in range(3) for batch in range(2)]
    assert images_of(source)[:2] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert (np.concatenate([batch.labels for batch in source]).reshape(3, 8, 5) == z.transpose(1, 0, 2)).all()
    np.save(tmp_path / "part-1.npy", z[6:, :2])
    with pytest.raises(BadLabels, match=r"part-1\.npy: 2 views per image, but .*part-0\.npy has 3"):
        open_labels(tmp_path, axes="images,views,classes")


@pytest.mark.parametrize("file", FILES)
def test_axes_of_length_one_are_kept_if_they_are_named(file: str, tmp_path: Path) -> None:
    source = open_labels(write(tmp_path / file, draw(4, 1, 5)), axes="epochs,images,classes")
    assert source.places == [Place(epoch, 0) for epoch in range(4)] and images_of(source) == [[0]] * 4
    source = open_labels(write(tmp_path / file, draw(2, 1, 6, 5)))
    assert images_of(source) == [list(range(6))] * 2


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("teachers,images,classes", r"a dump has one teacher; .* np\.save\('mean\.npy', labels\.mean\(0\)\)"),
        ("images,teachers,classes", r"a dump has one teacher; .* labels\.mean\(1\)\)"),
        ("images,time,classes", "must be images,classes; epochs,images,classes; or images,views,classes"),
        ("classes,images", "transpose the array and save it again"),
        ("", "must be images,classes"),
    ],
)
def test_unsupported_axes_are_refused_with_the_remedy(axes: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_axes(axes)


def test_axes_that_do_not_fit_the_array_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", draw(4, 6, 5))
    with pytest.raises(BadLabels, match=r"a\.npy: shape \[4, 6, 5\] has 3 axes longer than 1, but --axes names 2"):
        open_labels(tmp_path / "a.npy", axes="images,classes")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "batch_0.tar").touch()
    with pytest.raises(UsageError, match="axes is 'images,classes'; it must be left out: lpqld records its axes"):
        open_labels(tmp_path / "flat", axes="images,classes")


@pytest.mark.parametrize("file", FILES)
def test_float64_is_narrowed_with_a_note_and_overflow_is_refused(file: str, tmp_path: Path) -> None:
    z = draw(6, 5).astype(np.float64) * np.pi
    source = open_labels(write(tmp_path / file, z))
    assert source.dtype == "F32" and source.notes == [f"{tmp_path / file}: float64 is narrowed to float32"]
    assert (source.read(0).labels == z.astype(np.float32)).all()
    z[2, 3] = 1e300
    with pytest.raises(BadLabels, match="row 2: class 3 is inf; labels must be finite"):
        open_labels(write(tmp_path / file, z)).read(0)


@pytest.mark.parametrize("kind", [">f2", ">f4", ">f8"])
@pytest.mark.parametrize("file", ["a.npy", "a.npz", "a.h5"])
def test_values_in_the_other_byte_order_are_read(file: str, kind: str, tmp_path: Path) -> None:
    z = draw(6, 5)
    labels = open_labels(write(tmp_path / file, z.astype(kind))).read(0).labels
    assert labels.dtype.isnative and (labels == z).all()


def test_bfloat16_saved_by_numpy_is_read_with_a_note(tmp_path: Path) -> None:
    z = torch.randn(6, 5).bfloat16()
    raw = z.view(torch.int16).numpy().view("V2")  # as JAX arrays are saved
    np.save(tmp_path / "a.npy", raw)
    np.savez(tmp_path / "a.npz", logits=raw)
    for file in ("a.npy", "a.npz"):
        source = open_labels(tmp_path / file)
        assert source.dtype == "BF16" and source.notes == [f"{tmp_path / file}: type |V2 is read as bfloat16"]
        assert (source.read(0).labels == z.float().numpy()).all()
