"""A folder of files of labels: numbered parts are concatenated with a note, others are refused with the remedies."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqlabel.errors import BadLabels
from vqlabel.labels import open_labels

Z = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float16)


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".pt"):
            torch.save(torch.from_numpy(Z), folder / name)
        else:
            np.save(folder / name, Z)
            (folder / f"{name}.npy").exists() and (folder / f"{name}.npy").rename(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"part-{at}.npy" for at in range(12)],
        ["shard_00.npy", "shard_01.npy"],
        ["0.npy", "1.npy", "2.npy"],
        ["labels1.npy", "labels2.npy"],
        ["epoch0_batch0.npy", "epoch0_batch1.npy", "epoch1_batch0.npy"],
        ["data-00000-of-00002.npy", "data-00001-of-00002.npy"],
        ["resnet50_0.npy", "resnet50_1.npy"],
        ["part-0.pt", "part-1.pt"],
    ],
    ids=lambda names: names[0],
)
def test_numbered_parts_are_concatenated_with_a_note(names: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "dump", *names)
    (folder / "README.txt").touch()
    (folder / "._part-0.npy").write_bytes(b"\0\5\x16\7" + bytes(60))
    (folder / "._labels.pt").write_bytes(b"\0\5\x16\7" + bytes(60))
    (folder / ".DS_Store").touch()
    source = open_labels(folder)
    assert source.notes == [f"{folder}: {len(names)} files concatenated, {names[0]} to {names[-1]}"]
    assert (np.concatenate([batch.labels for batch in source]) == np.tile(Z, (len(names), 1))).all()


def test_a_single_file_of_labels_has_no_note(tmp_path: Path) -> None:
    folder = write(tmp_path / "dump", "logits.npy")
    (folder / "README.txt").touch()
    assert open_labels(folder).notes == []


def test_missing_parts_are_counted_in_the_note(tmp_path: Path) -> None:
    folder = write(tmp_path / "dump", "part-0.npy", "part-1.npy", "part-5.npy")
    assert open_labels(folder).notes == [
        f"{folder}: 3 files concatenated, part-0.npy to part-5.npy; 3 numbers between them are missing"
    ]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["resnet50.npy", "vit_b.npy"], r"files whose names differ in more than a number \(resnet50\.npy, vit_b\.npy\)"),
        (["train.npy", "val.npy"], r"files whose names differ in more than a number \(train\.npy, val\.npy\)"),
        (["train_0.npy", "train_1.npy", "val_0.npy"], "files whose names differ in more than a number"),
        (["logits.npy", "targets.npy"], "files whose names differ in more than a number"),
        (["resnet18.npy", "resnet50.npy"], r"resnet18\.npy to resnet50\.npy, whose numbers are not consecutive"),
        (
            ["rank0.npy", "rank1.npy"],
            r"rank0\.npy to rank1\.npy, which are written by ranks: each rank gets every world_size-th image",
        ),
        (["logits_rank_0.npy", "logits_rank_1.npy"], "which are written by ranks"),
        (["teacher1.npy", "teacher2.npy"], "which are of different teachers: a dump has one"),
        (["seed_0.npy", "seed_1.npy"], "which are of different teachers or runs: a dump has one"),
        (["part-1.npy", "part-01.npy"], r"two files of one number \(part-"),
        (["a.pt", "b.pt"], "files whose names differ in more than a number"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_files_that_are_not_parts_of_one_dump_are_refused_with_both_remedies(names: list[str], why: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "dump", *names)
    with pytest.raises(
        BadLabels,
        match=rf"dump: contains .*{why}.*\. Name the file to read, such as .*dump/.*; the parts .* must be named part-0\.",
    ):
        open_labels(folder)
    assert len(open_labels(folder / names[0]).read(0)) == 4


def test_the_message_for_a_distilled_dataset_has_its_file_of_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "dd", "images.pt", "labels.pt", "lr.pt")
    with pytest.raises(BadLabels, match=r"dd: the labels of a distilled dataset are in one of its files: name .*dd/labels\.pt"):
        open_labels(folder)


def test_a_folder_of_label_maps_is_refused_as_label_maps(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch.save(torch.ones(2, 5, 15, 15), tmp_path / name)
    with pytest.raises(BadLabels, match=r"a\.pt: shape \[2, 5, 15, 15\]; .*looks like a label map of ReLabel"):
        open_labels(tmp_path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.safetensors", "a.pt", "a.parquet"])
def test_a_folder_with_the_name_of_a_shard_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(BadLabels, match="is a folder, not a file"):
        open_labels(tmp_path)


def test_a_file_that_is_truncated_while_it_is_read_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.tile(Z, (5000, 1)))
    source = open_labels(tmp_path / "a.npy")
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(50_000)
    source.read(0)
    with pytest.raises(BadLabels, match=r"a\.npy: truncated, \d+ of 40960 bytes at row 4096"):
        source.read(1)


def test_an_npz_with_another_compression_method_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    import zipfile

    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
            archive.writestr("logits.npy", bytes(1000))
        with pytest.raises(BadLabels, match=rf"logits\.npy is compressed by method {method}, which NumPy does not use"):
            open_labels(tmp_path / "a.npz")
