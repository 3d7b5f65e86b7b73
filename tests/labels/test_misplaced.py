"""A folder above or below a dump, and files of other programs: each is named, with what to name or do instead."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vqlabel.errors import BadLabels
from vqlabel.labels import open_labels

Tree = Callable[..., Path]


@pytest.fixture
def tree(write_sre2l: Callable[..., Path], sre2l_items: Callable[..., list[object]], draw: Callable[..., torch.Tensor]) -> Tree:
    return lambda folder, epoch=0: write_sre2l(folder, sre2l_items(draw(4, 10)), epoch)


def refusal(path: Path) -> str:
    with pytest.raises(BadLabels) as error:
        open_labels(path)
    return str(error.value)


@pytest.mark.parametrize("between", ["FKD_cutmix_fp16", "relabel/FKD_cutmix_fp16", "a/b/c"])
def test_a_folder_above_a_tree_names_the_tree(between: str, tree: Tree, tmp_path: Path) -> None:
    tree(tmp_path / "top" / between)
    assert refusal(tmp_path / "top").endswith(f"the dump is {tmp_path / 'top' / between}: name that folder")
    assert len(open_labels(tmp_path / "top" / between)) == 1


def test_one_epoch_of_a_tree_names_the_tree(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "tree")
    want = f"is one epoch of a dump; name the folder that it lies in: {tmp_path / 'tree'}"
    assert refusal(tmp_path / "tree" / "epoch_0").endswith(want)
    monkeypatch.chdir(tmp_path / "tree" / "epoch_0")
    assert refusal(Path(".")).endswith(want)


def test_trees_of_several_ranks_are_named_and_not_mixed(tree: Tree, tmp_path: Path) -> None:
    for rank in range(6):
        tree(tmp_path / f"rank{rank}")
    said = refusal(tmp_path)
    assert "holds 6 dumps (rank0, rank1, rank2, rank3 ...), and one is read at a time" in said
    assert f"name one of them, such as {tmp_path / 'rank0'}" in said


def test_tinyvits_epochs_are_found_one_level_up_and_down(tmp_path: Path) -> None:
    epoch = tmp_path / "top" / "saved" / "logits_top10_epoch0"
    epoch.mkdir(parents=True)
    (epoch / "rank0-values.bin").write_bytes(bytes(44))
    assert refusal(tmp_path / "top").endswith(f"the dump is {tmp_path / 'top' / 'saved'}: name that folder")
    assert refusal(epoch).endswith(f"name the folder that it lies in: {tmp_path / 'top' / 'saved'}")


def test_arrays_and_webdataset_shards_below_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "set" / "train").mkdir(parents=True)
    np.save(tmp_path / "set" / "train" / "part-0.npy", np.ones((4, 5), np.float32))
    assert refusal(tmp_path / "set").endswith(f"the dump is {tmp_path / 'set' / 'train'}: name that folder")
    (tmp_path / "set" / "test").mkdir()
    with tarfile.open(tmp_path / "set" / "test" / "0.tar", "w") as archive:
        info = tarfile.TarInfo("0.logits.npy")
        archive.addfile(info, io.BytesIO())
    assert "holds 2 dumps (test, train), and one is read at a time" in refusal(tmp_path / "set")


def test_fkds_files_are_still_fkds(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01").mkdir(parents=True)
    torch.save([torch.rand(3, 4), torch.ones(3, dtype=torch.bool), torch.arange(3)], tmp_path / "train" / "n01" / "a.tar")
    (tmp_path / "train" / "n01" / "._a.tar").write_bytes(b"\0\5\x16\7" + bytes(60))
    source = open_labels(tmp_path)
    assert source.layout == "fkd" and list(source.names or ()) == ["train/n01/a"]


def test_halds_epochs_are_found_below_too(tmp_path: Path) -> None:
    (tmp_path / "top" / "FKD").mkdir(parents=True)
    (tmp_path / "top" / "FKD" / "epoch_0.tar").touch()
    assert refusal(tmp_path / "top").endswith(f"the dump is {tmp_path / 'top' / 'FKD'}: name that folder")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.txt", r"text takes five times the bytes .* numpy\.save\('labels\.npy', labels\)"),
        ("a.csv", "text takes five times the bytes"),
        ("a.jsonl", "text takes five times the bytes"),
        ("a.pkl", r"one that holds nothing but tensors, arrays and containers is read under the name \.pt"),
        ("a.npy.gz", "unpack it, and name the folder or file that comes of it"),
        ("a.vql", "it holds labels already: vqlabel info and stats show them"),
        ("a.mat", r"scipy\.io\.loadmat"),
        ("a.bin", r"records neither shape nor type; read it with numpy\.fromfile"),
        ("a.onnx", "it is a network: vqlabel relabel makes labels"),
        ("a.tar", "it is one file of a dump of many"),
        ("a.xyz", r"it must be one of \.npy, .* or a folder; save the array with numpy\.save"),
        ("a", r"no suffix is not a format of labels; it must be one of"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_remedy(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"0.1,0.2\n")
    with pytest.raises(BadLabels, match=rf"is not a format of labels; .*{remedy}|{remedy}"):
        open_labels(tmp_path / name)


def test_a_folder_of_such_files_is_refused_with_the_remedy_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    assert "nor another layout's files; see docs/inputs.md; of .csv files: text takes five times" in refusal(tmp_path)


def test_the_number_of_classes_that_was_guessed_is_noted(tmp_path: Path) -> None:
    torch.save([torch.rand(3, 4), torch.ones(3, dtype=torch.bool), torch.tensor([3, 986, 5])], tmp_path / "a.tar")
    note = f"{tmp_path}: C = 987: the largest class that is named, plus one; a teacher of more classes needs --classes"
    assert open_labels(tmp_path).notes == [note]
    assert open_labels(tmp_path, classes=1000).notes == []
