"""Forms of .pt files other than one tensor: batches, dicts, tuples, labels by image name.

Each is read, with a note on its form.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel import FitConfig
from vqlabel.errors import BadLabels
from vqlabel.labels import LabelSource, open_labels

Z = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 10
NAMES = [f"n{at % 3:02}/{at}.JPEG" for at in range(64)]


def opened(path: Path, saved: Any, **how: Any) -> LabelSource:
    torch.save(saved, path / "labels.pt")
    return open_labels(path / "labels.pt", **how)


def labels_of(source: LabelSource) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([batch.labels for batch in source]))


@pytest.mark.parametrize(
    ("saved", "note"),
    [
        (
            {"logits": Z, "features": torch.randn(64, 32), "epoch": 3},
            "the labels are 'logits'; not read: 'features' float32 [64, 32]",
        ),
        ({"logits": Z.numpy(), "targets": Y.numpy()}, "the labels are 'logits'; not read: 'targets' int64 [64] (hard labels)"),
        ((Y.numpy(), Z.numpy()), "the labels are '1'; not read: '0' int64 [64] (hard labels)"),
        ({"train": {"outputs": Z, "y": Y}}, "the labels are 'train/outputs'; not read: 'train/y' int64 [64] (hard labels)"),
        ((Z, Y), "the labels are '0'; not read: '1' int64 [64] (hard labels)"),
        ([Z, Y], "the labels are '0'; not read: '1' int64 [64] (hard labels)"),
        (list(Z.split(24)), "a list of 3 arrays, concatenated in order"),
        ([part.numpy() for part in Z.split(24)], "a list of 3 arrays, concatenated in order"),
        ([part[:, None] for part in Z.split(24)], "a list of 3 arrays, concatenated in order"),
        (list(Z), "a list of 64 arrays, concatenated in order"),
        ([Z], None),
        ({"logits": list(Z.split(24)), "epoch": 3}, None),
        ([(z, y) for z, y in zip(Z.split(24), Y.split(24), strict=True)], "a list of 3 batches, concatenated in order"),
        (
            [{"logits": z, "target": y} for z, y in zip(Z.split(24), Y.split(24), strict=True)],
            "a list of 3 batches, concatenated in order",
        ),
        ([{"logits": z, "target": y} for z, y in zip(Z, Y, strict=True)], "a list of 64 batches, concatenated in order"),
        ({at: Z[at] for at in reversed(range(64))}, "read as the labels of images 0 to 63"),
    ],
    ids=range(16),
)
def test_every_supported_form_gives_the_labels_in_order(saved: Any, note: str | None, tmp_path: Path) -> None:
    source = opened(tmp_path, saved)
    assert torch.equal(labels_of(source), Z) and (source.layout, source.classes, source.order) == ("tensor", 10, "rows")
    assert any(note in line for line in source.notes) if note else not source.notes
    assert all(line.startswith(str(tmp_path / "labels.pt")) for line in source.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_is_kept_through_a_list_of_batches(dtype: torch.dtype, tmp_path: Path) -> None:
    source = opened(tmp_path, list(Z.to(dtype).split(24)))
    assert source.dtype == {torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F32"}[dtype]
    assert torch.equal(labels_of(source).to(dtype), Z.to(dtype).to(labels_of(source).dtype).to(dtype))


def test_labels_by_image_name_are_packed_with_the_names(tmp_path: Path) -> None:
    by_name = dict(zip(NAMES, Z, strict=True))
    source = opened(tmp_path, by_name)
    assert list(source.about.names or ()) == NAMES and torch.equal(labels_of(source), Z)
    assert source.notes[0].endswith("read as the labels of 64 images by name: 'n00/0.JPEG', 'n01/1.JPEG' ...")
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == NAMES and all(torch.equal(back[name], label) for name, label in by_name.items())


def test_labels_by_image_name_may_have_an_axis_of_length_one(tmp_path: Path) -> None:
    source = opened(tmp_path, {name: label[None] for name, label in zip(NAMES, Z, strict=True)})
    assert list(source.about.names or ()) == NAMES and torch.equal(labels_of(source), Z)


def test_a_list_of_arrays_can_be_read_as_epochs(tmp_path: Path) -> None:
    source = opened(tmp_path, list(Z.split(16)), axes="epochs,images,classes")
    assert [place.epoch for place in source.places] == [0, 1, 2, 3] and torch.equal(labels_of(source), Z)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ((Z, -Z), "several of its arrays may be the labels: '0' .*, '1' .*; name one with --array 0"),
        ([Z, Z[:, :9]], "several of its arrays may be the labels"),
        (
            [{"logits": Z}, {"outputs": Z}],
            r"batch 1 holds the arrays \['outputs'\], but batch 0 \['logits'\]; save the labels alone",
        ),
        ({"a.jpg": Z[0], "b.jpg": Z[0][:9]}, "but no array .* of floats, which labels are"),
        (["a", "b"], r"contains list \[str, str\], but no tensor of labels"),
        ({}, "contains dict, but no tensor of labels"),
    ],
    ids=range(6),
)
def test_ambiguous_files_are_refused_with_the_remedy(saved: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=rf"labels\.pt: .*{message}"):
        opened(tmp_path, saved)
