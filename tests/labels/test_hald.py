"""HALD's files -> label batches and back: probabilities as they are stored, each record with its image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import Place, open_labels, writing

N, C, B = 20, 10, 8


def batch(b: int, seed: int, coords: torch.dtype = torch.float16) -> list[Any]:
    """A batch as HALD's relabelling saves it."""
    draw = torch.Generator().manual_seed(seed)
    probs = torch.softmax(torch.randn(b, C, generator=draw) * 5 / 20, 1).half()
    crop, flip = torch.rand(b, 4, generator=draw).to(coords), torch.rand(b, generator=draw) < 0.5
    return [crop, flip, torch.randperm(b, generator=draw), 0.7, [np.int64(v) for v in (1, 2, 30, 40)], probs]


def write_dump(folder: Path, epochs: int = 2, **how: Any) -> tuple[list[list[list[Any]]], dict[str, list[int]]]:
    folder.mkdir()
    dump = [[batch(min(B, N - at), 10 * epoch + at, **how) for at in range(0, N, B)] for epoch in range(epochs)]
    order = {str(epoch): np.random.default_rng(epoch).permutation(N).tolist() for epoch in range(epochs)}
    for epoch, batches in enumerate(dump):
        torch.save(batches, folder / f"epoch_{epoch}.tar")
    torch.save(order, folder / "sampler_indices_dict.pt")
    return dump, order


def same(loaded: list[Any], expected: list[Any]) -> bool:
    """Whether items are the same, tensors bit for bit."""
    tensors = [0, 1, 2, 5]
    alike = all(loaded[at].dtype == expected[at].dtype and torch.equal(loaded[at], expected[at]) for at in tensors)
    return alike and loaded[3] == expected[3] and loaded[4] == [int(edge) for edge in expected[4]]


def test_a_dump_is_detected_and_read_with_images_and_a_note_on_its_temperature(tmp_path: Path) -> None:
    dump, order = write_dump(tmp_path / "FKD_bs8_slc20_ipc2")
    source = open_labels(tmp_path / "FKD_bs8_slc20_ipc2")
    about = (source.layout, source.classes, source.domain, source.dtype, source.order, source.about.temperature)
    assert about == ("hald", C, "probs", "F16", "explicit", 1.0)
    assert source.about.details == {"coords": "float16", "teacher_temperature": 20.0}
    assert len(source.notes) == 1 and "probabilities at T = 20 (slc20 in the folder's name)" in source.notes[0]
    assert source.places == [Place(epoch, at) for epoch in range(2) for at in range(3)]
    for loaded, place in zip(source, source.places, strict=True):
        expected = dump[place.epoch][place.batch]
        assert (loaded.labels == expected[5].numpy()).all() and loaded.mix_box == (1, 2, 30, 40) and loaded.mix_lam == 0.7
        assert loaded.crop is not None and (loaded.crop == expected[0].float().numpy()).all()
        assert loaded.image is not None and loaded.image.tolist() == order[str(place.epoch)][B * place.batch :][:B]


@pytest.mark.parametrize("coords", [torch.float16, torch.float32], ids=str)
def test_a_packed_dump_is_unpacked_to_identical_items(coords: torch.dtype, tmp_path: Path) -> None:
    dump, order = write_dump(tmp_path / "dump", coords=coords)
    source = open_labels(tmp_path / "dump")
    assert "an unknown temperature T (the folder's name has no slcT)" in source.notes[0]
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    for _ in range(2):  # the second one overwrites the first
        vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back", overwrite=True)
    for epoch, expected in enumerate(dump):
        loaded = torch.load(tmp_path / "back" / f"epoch_{epoch}.tar", weights_only=True)
        assert len(loaded) == 3 and all(same(*pair) for pair in zip(loaded, expected, strict=True))
    assert torch.load(tmp_path / "back" / "sampler_indices_dict.pt", weights_only=True) == order
    assert sorted(entry.name for entry in (tmp_path / "back").iterdir()) == [
        "epoch_0.tar",
        "epoch_1.tar",
        "sampler_indices_dict.pt",
    ]


def test_inconsistent_files_are_refused(tmp_path: Path) -> None:
    dump, order = write_dump(tmp_path / "dump", epochs=3)
    source = open_labels(tmp_path / "dump")
    torch.save(dump[1][:2], tmp_path / "dump" / "epoch_1.tar")
    with pytest.raises(BadLabels, match=r"epoch_1\.tar: has 2 batches, but the first epoch has 3"):
        source.read(3)
    torch.save(batch(8, 0), tmp_path / "dump" / "epoch_1.tar")
    with pytest.raises(BadLabels, match=r"epoch_1\.tar: contains list \[.*; HALD's epoch is a list of batches"):
        open_labels(tmp_path / "dump").read(3)
    torch.save([batch(8, 0, torch.float32)] * 3, tmp_path / "dump" / "epoch_1.tar")
    with pytest.raises(BadLabels, match="coords float32, but in the first batch F16, float16"):
        open_labels(tmp_path / "dump").read(3)
    torch.save({**order, "2": order["2"][:19]}, tmp_path / "dump" / "sampler_indices_dict.pt")
    with pytest.raises(BadLabels, match=r"sampler_indices_dict\.pt: has 19 images for epoch 2, whose file has more labels"):
        open_labels(tmp_path / "dump").read(8)
    for forged in ([1], {"0": [0.5]}, {"x": [1]}, {"0": [-1]}):
        torch.save(forged, tmp_path / "dump" / "sampler_indices_dict.pt")
        with pytest.raises(BadLabels, match=r"sampler_indices_dict\.pt: not an order file"):
            open_labels(tmp_path / "dump")
    torch.save({"0": [1], 0: [2]}, tmp_path / "dump" / "sampler_indices_dict.pt")
    with pytest.raises(BadLabels, match="has two orders for an epoch"):
        open_labels(tmp_path / "dump")
    (tmp_path / "dump" / "sampler_indices_dict.pt").unlink()
    (tmp_path / "dump" / "epoch_1.tar").unlink()
    left = open_labels(tmp_path / "dump")
    assert left.order == "none" and left.read(0).image is None and "epoch 1 missing" in left.notes[0]


def test_labels_of_another_layout_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((1, 6, 5), 0.2, np.float32))
    source = open_labels(tmp_path / "a.npy", domain="probs")
    with (
        pytest.raises(UsageError, match="hald stores probabilities at the students' temperature"),
        writing(tmp_path / "out", source.about, "hald"),
    ):
        pass
