"""All steps on real labels, if they are beside the checkout: 1,000 ImageNet images x 32 epochs in SRe2L's layout."""

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
def two_epochs(tmp_path: Path) -> Path:
    """The first two epochs of the dump, as symbolic links."""
    return link(tmp_path / "two_epochs", range(2))


def link(folder: Path, epochs: range) -> Path:
    folder.mkdir()
    for epoch in epochs:
        (folder / f"epoch_{epoch}").symlink_to(DUMP / f"epoch_{epoch}")
    (folder / ORDER_FILE).symlink_to(DUMP / ORDER_FILE)
    return folder


def test_a_raw_file_unpacks_to_the_same_labels_and_columns(two_epochs: Path, tmp_path: Path) -> None:
    codec, _ = vqlabel.fit(two_epochs, vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(two_epochs, tmp_path / "raw.vql", codec=codec)
    vqlabel.unpack(tmp_path / "raw.vql", tmp_path / "tree", layout="lpld")
    for place, file in find_batches(two_epochs).items():
        original = unpickle(file)
        unpacked = torch.load(tmp_path / "tree" / f"epoch_{place.epoch}" / f"batch_{place.batch}.tar", weights_only=True)
        for number in (0, 1, 2, 5):
            assert unpacked[number].dtype == original[number].dtype
            assert torch.equal(unpacked[number], original[number])
        assert unpacked[3] == original[3]
        assert [type(v) for v in unpacked[4]] == [int] * 4
        assert unpacked[4] == [int(v) for v in original[4]]
    order = json.loads((DUMP / ORDER_FILE).read_text())
    assert json.loads((tmp_path / "tree" / ORDER_FILE).read_text()) == {epoch: order[epoch] for epoch in ("0", "1")}


def test_crops_of_real_images_are_stored_in_at_most_40_bits(two_epochs: Path, tmp_path: Path) -> None:
    codec, _ = vqlabel.fit(two_epochs, vqlabel.FitConfig(codec="topk"))
    vqlabel.pack(two_epochs, tmp_path / "topk.vql", codec=codec)
    streams = vqlabel.open(tmp_path / "topk.vql").file.container.streams
    assert sum(streams["columns.crop"].bits) <= 40


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "rq"), [(32, (1.527, 0.887, 0.651)), (64, (1.170, 0.723, 0.538)), (128, (0.850, 0.556, 0.416))])
def test_the_default_codec_has_lower_held_out_kl_than_a_residual_quantizer(
    bits: int, rq: tuple[float, float, float], tmp_path: Path
) -> None:
    """`rq`: KL of faiss' residual quantizer at T = 1, 4, 20 on the same split, from tests/benchmarks/distortion.py."""
    train, held = link(tmp_path / "train", range(24)), link(tmp_path / "held_out", range(24, 32))
    codec, _ = vqlabel.fit(train, vqlabel.FitConfig(bits=bits, temperature=MIX))
    vqlabel.pack(held, tmp_path / "held.vql", codec=codec)
    distortion = vqlabel.stats(tmp_path / "held.vql", against=held)["distortion"]
    kl = np.array([distortion["kl_T1"], distortion["kl_T4"], distortion["kl_T20"]])
    assert np.all(kl <= np.array([0.5, 0.8, 0.95]) * rq), distortion
