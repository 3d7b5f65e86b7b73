"""Folders above or below a dump, and other programs' files, are refused with the path to pass or the command to run."""

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
def test_the_message_for_a_folder_above_a_tree_has_the_tree(between: str, tree: Tree, tmp_path: Path) -> None:
    tree(tmp_path / "top" / between)
    assert refusal(tmp_path / "top").endswith(f"the dump is {tmp_path / 'top' / between}: pass that folder")
    assert len(open_labels(tmp_path / "top" / between)) == 1


def test_the_message_for_one_epoch_of_a_tree_has_the_tree(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "tree")
    expected = f"is one epoch of a dump; pass the folder that contains it: {tmp_path / 'tree'}"
    assert refusal(tmp_path / "tree" / "epoch_0").endswith(expected)
    monkeypatch.chdir(tmp_path / "tree" / "epoch_0")
    assert refusal(Path(".")).endswith(expected)


def test_the_message_for_a_folder_of_several_trees_lists_them(tree: Tree, tmp_path: Path) -> None:
    for rank in range(6):
        tree(tmp_path / f"rank{rank}")
    message = refusal(tmp_path)
    assert "contains 6 dumps (rank0, rank1, rank2, rank3 ...), and one is read at a time" in message
    assert f"pass one of them, such as {tmp_path / 'rank0'}" in message


def test_tinyvit_dumps_are_found_above_and_below_the_path(tmp_path: Path) -> None:
    epoch = tmp_path / "top" / "saved" / "logits_top10_epoch0"
    epoch.mkdir(parents=True)
    (epoch / "rank0-values.bin").write_bytes(bytes(44))
    assert refusal(tmp_path / "top").endswith(f"the dump is {tmp_path / 'top' / 'saved'}: pass that folder")
    assert refusal(epoch).endswith(f"pass the folder that contains it: {tmp_path / 'top' / 'saved'}")


def test_the_message_for_a_folder_above_shards_has_their_folder(tmp_path: Path) -> None:
    (tmp_path / "set" / "train").mkdir(parents=True)
    np.save(tmp_path / "set" / "train" / "part-0.npy", np.ones((4, 5), np.float32))
    assert refusal(tmp_path / "set").endswith(f"the dump is {tmp_path / 'set' / 'train'}: pass that folder")
    (tmp_path / "set" / "test").mkdir()
    with tarfile.open(tmp_path / "set" / "test" / "0.tar", "w") as archive:
        info = tarfile.TarInfo("0.logits.npy")
        archive.addfile(info, io.BytesIO())
    assert "contains 2 dumps (test, train), and one is read at a time" in refusal(tmp_path / "set")


def test_a_folder_of_fkd_files_is_read_as_fkd(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01").mkdir(parents=True)
    torch.save([torch.rand(3, 4), torch.ones(3, dtype=torch.bool), torch.arange(3)], tmp_path / "train" / "n01" / "a.tar")
    (tmp_path / "train" / "n01" / "._a.tar").write_bytes(b"\0\5\x16\7" + bytes(60))
    source = open_labels(tmp_path)
    assert source.layout == "fkd" and list(source.about.names or ()) == ["train/n01/a"]


def test_hald_dumps_are_found_below_the_path(tmp_path: Path) -> None:
    (tmp_path / "top" / "FKD").mkdir(parents=True)
    (tmp_path / "top" / "FKD" / "epoch_0.tar").touch()
    assert refusal(tmp_path / "top").endswith(f"the dump is {tmp_path / 'top' / 'FKD'}: pass that folder")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.txt", r"text takes five times the bytes .* numpy\.save\('labels\.npy', labels\)"),
        ("a.csv", "text takes five times the bytes"),
        ("a.jsonl", "text takes five times the bytes"),
        ("a.pkl", r"if it contains only tensors, arrays and containers, rename it to \.pt"),
        ("a.npy.gz", "unpack it, and pass the folder or file that it contains"),
        ("a.vql", "it is compressed already: vqlabel info and stats describe it"),
        ("a.mat", r"scipy\.io\.loadmat"),
        ("a.bin", r"records neither shape nor type; read it with numpy\.fromfile"),
        ("a.onnx", "it is a network: vqlabel relabel makes labels"),
        ("a.tar", "it is one of the many files of a dump"),
        ("a.xyz", r"it must be one of \.npy, .* or a folder; save the array with numpy\.save"),
        ("a", r"no suffix is not a format of labels; it must be one of"),
    ],
)
def test_a_file_of_another_program_is_refused_with_the_remedy(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"0.1,0.2\n")
    with pytest.raises(BadLabels, match=rf"is not a format of labels; .*{remedy}|{remedy}"):
        open_labels(tmp_path / name)


def test_a_folder_of_such_files_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    assert "nor files of another layout; see docs/inputs.md; for .csv files: text takes five times" in refusal(tmp_path)


def test_an_inferred_number_of_classes_is_noted(tmp_path: Path) -> None:
    torch.save([torch.rand(3, 4), torch.ones(3, dtype=torch.bool), torch.tensor([3, 986, 5])], tmp_path / "a.tar")
    note = f"{tmp_path}: C = 987: the largest class in the dump, plus one; if the teacher has more classes, pass --classes"
    assert open_labels(tmp_path).notes == [note]
    assert open_labels(tmp_path, classes=1000).notes == []
