"""The whole path on real labels: 1,000 ImageNet images x 32 epochs in SRe2L's layout, where they lie beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import DUMP

import vqlabel
from vqlabel.config import MIX
from vqlabel.labels.layouts.tree import ORDER_FILE, find_batches
from vqlabel.labels.layouts.unpickle import unpickle

pytestmark = pytest.mark.skipif(not DUMP.is_dir(), reason=f"no real dump at {DUMP}")


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Its first two epochs, by links."""
    return link(tmp_path / "part", range(2))


def link(folder: Path, epochs: range) -> Path:
    folder.mkdir()
    for epoch in epochs:
        (folder / f"epoch_{epoch}").symlink_to(DUMP / f"epoch_{epoch}")
    (folder / ORDER_FILE).symlink_to(DUMP / ORDER_FILE)
    return folder


def test_a_raw_tree_comes_back_bit_for_bit_with_every_item_beside_the_labels(part: Path, tmp_path: Path) -> None:
    codec, _ = vqlabel.fit(part, vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(part, tmp_path / "raw.vql", codec=codec)
    vqlabel.unpack(tmp_path / "raw.vql", tmp_path / "tree", layout="lpld")
    for place, file in find_batches(part).items():
        there = unpickle(file)
        back = torch.load(tmp_path / "tree" / f"epoch_{place.epoch}" / f"batch_{place.batch}.tar", weights_only=True)
        for number in (0, 1, 2, 5):
            assert back[number].dtype == there[number].dtype
            assert torch.equal(back[number], there[number])
        assert back[3] == there[3]
        assert [type(v) for v in back[4]] == [int] * 4
        assert back[4] == [int(v) for v in there[4]]
    order = json.loads((DUMP / ORDER_FILE).read_text())
    assert json.loads((tmp_path / "tree" / ORDER_FILE).read_text()) == {epoch: order[epoch] for epoch in ("0", "1")}


def test_crops_of_real_images_travel_as_integers_of_at_most_40_bits(part: Path, tmp_path: Path) -> None:
    codec, _ = vqlabel.fit(part, vqlabel.FitConfig(codec="topk"))
    vqlabel.pack(part, tmp_path / "topk.vql", codec=codec)
    streams = vqlabel.open(tmp_path / "topk.vql").file.container.streams
    assert sum(streams["columns.crop"].bits) <= 40


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "rq"), [(32, (1.527, 0.887, 0.651)), (64, (1.170, 0.723, 0.538)), (128, (0.850, 0.556, 0.416))])
def test_the_default_codec_is_nearer_than_a_residual_quantizer_at_the_same_bits_held_out(
    bits: int, rq: tuple[float, float, float], tmp_path: Path
) -> None:
    """`rq`: faiss' on the same split, by tests/benchmarks/distortion.py. At most 0.5 of it at T = 1, 0.8 at T = 4, 0.95 at T = 20."""
    seen, held = link(tmp_path / "seen", range(24)), link(tmp_path / "held", range(24, 32))
    codec, _ = vqlabel.fit(seen, vqlabel.FitConfig(bits=bits, temperature=MIX))
    vqlabel.pack(held, tmp_path / "held.vql", codec=codec)
    found = vqlabel.stats(tmp_path / "held.vql", against=held)["distortion"]
    assert np.all(np.array([found["kl_T1"], found["kl_T4"], found["kl_T20"]]) <= np.array([0.5, 0.8, 0.95]) * rq), found
