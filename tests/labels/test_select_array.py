"""Several arrays in a file -> the array of labels, by name, type and shape, or as the user names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import open_labels
from vqlabel.labels.layouts.select_array import words_of

Z = (np.random.default_rng(0).normal(size=(6, 5)) * 3).astype(np.float32)
P = np.exp(Z) / np.exp(Z).sum(1, keepdims=True)
F = np.random.default_rng(1).normal(size=(6, 32)).astype(np.float32)
Y = np.arange(6) % 5


def save_npz(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def save_tensors(path: Path, arrays: dict[str, Any]) -> Path:
    save_file({name: torch.tensor(array) for name, array in arrays.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_pt(path: Path, arrays: dict[str, Any]) -> Path:
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def save_h5(path: Path, arrays: dict[str, Any]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path.with_suffix(".h5")


Save = Callable[[Path, dict[str, Any]], Path]
savers = pytest.mark.parametrize("save", [save_npz, save_tensors, save_pt, save_h5])


@savers
@pytest.mark.parametrize(
    ("arrays", "name", "domain"),
    [
        ({"logits": Z, "labels": Y}, "logits", "logits"),
        ({"labels": Y, "outputs": Z, "ids": Y}, "outputs", "logits"),
        ({"features": F, "teacher_logits": Z}, "teacher_logits", "logits"),
        ({"features": F, "soft_labels": Z, "labels": Y}, "soft_labels", "logits"),
        ({"targets": Y, "teacherProbs": P.astype(np.float32)}, "teacherProbs", "probs"),
        ({"features": F, "labels": Z}, "labels", "logits"),
        ({"z": Z, "y": Y}, "z", "logits"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_array_with_a_name_of_outputs_is_read_and_the_others_are_noted(
    arrays: dict[str, Any], name: str, domain: str, save: Save, tmp_path: Path
) -> None:
    source = open_labels(save(tmp_path / "a", arrays))
    assert (source.read(0).labels == arrays[name]).all() and source.domain == domain
    (note,) = source.notes
    assert f"the labels are {name!r}; not read: " in note
    assert all(repr(other) in note for other in arrays if other != name)
    assert note.count("(hard labels)") == sum(array.ndim == 1 for array in arrays.values())


@savers
@pytest.mark.parametrize(
    "arrays",
    [
        {"logits": Z, "probs": P.astype(np.float32)},
        {"train_logits": Z, "val_logits": Z},
        {"a": Z, "b": Z},
        {"features": F, "labels": Y},
        {"weight": F, "bias": F[0]},
    ],
    ids=lambda arrays: "+".join(arrays),
)
def test_ambiguous_arrays_are_refused_with_the_remedy(arrays: dict[str, Any], save: Save, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"several of its arrays may be the labels: .*; name one with --array \w+"):
        open_labels(save(tmp_path / "a", arrays))


@savers
def test_the_array_is_named_by_an_option_or_after_the_path(save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "a", {"train_logits": Z, "val_logits": -Z, "targets": Y})
    for source in (open_labels(path, array="val_logits"), open_labels(f"{path}:val_logits")):
        assert (source.read(0).labels == -Z).all()
        assert "the labels are 'val_logits'; not read: 'targets'" in source.notes[0] or "'train_logits'" in source.notes[0]
    with pytest.raises(UsageError, match=r"--array test_logits: .* contains .*'train_logits' .*; name one of them"):
        open_labels(path, array="test_logits")
    with pytest.raises(UsageError, match=r"array is 'x'; it must be left out: .* names val_logits"):
        open_labels(f"{path}:val_logits", array="x")


def test_the_message_for_a_file_without_a_float_array_lists_its_arrays(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a", {"labels": Y, "ids": Y})
    with pytest.raises(BadLabels, match=r"contains 'labels' int64 \[6\], 'ids' int64 \[6\], but no array \[n, C\] of floats"):
        open_labels(path)


def test_a_name_is_refused_if_the_array_has_none_or_the_layout_defines_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Z)
    torch.save(torch.from_numpy(Z), tmp_path / "a.pt")
    for file in ("a.npy", "a.pt"):
        with pytest.raises(UsageError, match=r"must be left out: .* is a single array without a name"):
            open_labels(tmp_path / file, array="logits")
    (tmp_path / "tree" / "epoch_0").mkdir(parents=True)
    (tmp_path / "tree" / "epoch_0" / "batch_0.tar").touch()
    with pytest.raises(UsageError, match="array is 'x'; it must be left out: sre2l records which of its arrays are labels"):
        open_labels(tmp_path / "tree", array="x")


def test_an_existing_path_with_a_colon_is_read_as_a_path(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Z)
    (tmp_path / "a.npy").rename(tmp_path / "a:b.npy")
    assert len(open_labels(tmp_path / "a:b.npy").read(0)) == 6
    with pytest.raises(UsageError, match="no such file or directory"):
        open_labels(tmp_path / "b.npy:logits")


def test_a_long_list_of_arrays_is_truncated(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a", {"logits": Z, **{f"extra_{at}": Y for at in range(20)}})
    assert open_labels(path).notes[0].endswith("and 12 more")


def test_names_of_every_style_are_split_into_words() -> None:
    assert words_of("train/teacher_logits.npy") == {"train", "teacher", "logits", "npy"}
    assert words_of("softLabels") == {"soft", "labels"} and words_of("LOGITS-1") == {"logits"}
