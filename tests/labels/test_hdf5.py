"""Datasets of HDF5 files -> labels; external, incompletely written and too large datasets are refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

from vqlabel.errors import BadLabels, MissingExtra
from vqlabel.labels import Place, open_labels
from vqlabel.labels.layouts.rows import BATCH_RECORDS

h5py = pytest.importorskip("h5py")

Z = np.random.default_rng(0).normal(size=(3, BATCH_RECORDS + 4, 5)).astype(np.float16)


@pytest.mark.parametrize("how", [{}, {"chunks": (1, 100, 5)}, {"compression": "gzip"}], ids=["flat", "chunks", "gzip"])
def test_a_dataset_in_a_group_is_read_epoch_by_epoch(how: dict[str, object], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/logits", data=Z, **how)
        file["train/targets"] = np.arange(7)
        file.attrs["teacher"] = "resnet"
    source = open_labels(tmp_path / "a.h5:train/logits", axes="epochs,images,classes")
    assert (source.layout, source.classes, source.dtype, source.order) == ("arrays", 5, "F16", "rows")
    assert source.places == [Place(epoch, batch) for epoch in range(3) for batch in range(2)]
    assert (np.concatenate([source.read(at).labels for at in range(6)]) == Z.reshape(-1, 5)).all()
    assert "not read: 'train/targets' int64 [7] (hard labels)" in open_labels(tmp_path / "a.h5").notes[0]


def refused(path: Path, message: str) -> None:
    with pytest.raises(BadLabels, match=rf"{path.name}: .*{message}"):
        list(open_labels(path))


def test_an_incompletely_written_dataset_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("logits", (100_000, 1000), "f4", chunks=(10, 1000))[:50] = 1
    refused(
        tmp_path / "a.h5", r"'logits' \[100000, 1000\] has 400000000 bytes, but 200000 are stored; it was not written completely"
    )


def test_a_dataset_larger_than_deflate_can_expand_to_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("logits", (1 << 40, 1000), "f4", compression="gzip")[:10] = 1
    refused(tmp_path / "a.h5", "it was not written completely, or is forged")


def test_a_dataset_with_huge_chunks_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "logits", (1 << 17, 1000), "f4", chunks=(1 << 17, 1000), compression="gzip", compression_opts=1, fillvalue=0
        )
        file["logits"].id.write_direct_chunk((0, 0), bytes(1 << 20))
    refused(tmp_path / "a.h5", r"chunks of 524288000 bytes; the limit is 268435456: h5repack -l CHUNK=1024x1000")


def test_a_dataset_stored_in_another_file_is_refused(tmp_path: Path) -> None:
    np.ones((6, 5), np.float32).tofile(tmp_path / "secret")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("logits", (6, 5), "f4", external=[(str(tmp_path / "secret"), 0, 120)])
    refused(tmp_path / "a.h5", "dataset 'logits' lies in other files; copy it into one file: h5repack")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["logits"] = np.ones((6, 5), np.float32)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["logits"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "logits")
    refused(tmp_path / "link.h5", "contains no arrays")
    layout = h5py.VirtualLayout((6, 5), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "logits", (6, 5))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("logits", layout)
    refused(tmp_path / "virtual.h5", "dataset 'logits' lies in other files")


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["logits"] = np.ones((40, 5), np.float32)
    data = (tmp_path / "a.h5").read_bytes()
    for size in range(0, len(data), 101):
        (tmp_path / "a.h5").write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"a\.h5: "):
            list(open_labels(tmp_path / "a.h5"))


def test_the_error_without_h5py_has_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"needs h5py, which is not installed; run: pip install 'vqlabel\[hdf5\]'"):
        open_labels(tmp_path / "a.h5")
