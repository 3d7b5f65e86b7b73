"""Exact classes: the largest classes of a label and their log-odds."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import FitHooks, LabelSample, fit_codec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.exact_top import STEP, join_exact, split_exact
from vqlabel.codecs.vqae.fit.dataset_stats import dataset_stats
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.errors import BadContainer, UsageError
from vqlabel.metrics.distortion import kl_divergence


@pytest.fixture(scope="module")
def labels() -> Tensor:
    """2,000 labels of 40 classes, of which one random class has most of the mass."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2000, 40, generator=generator)
    return logits.scatter_add_(1, torch.randint(40, (2000, 1), generator=generator), torch.full((2000, 1), 6.0)).half()


def sample_of(labels: Tensor) -> LabelSample:
    return LabelSample(
        train=labels[:-200], held_out=labels[-200:], train_context=None, held_out_context=None, domain="logits", dtype="F16"
    )


@cache
def fit(labels: Tensor, **options: Any) -> VqaeCodec:
    """Fit once per labels and options, without training of the codec's own rate: no test changes the codec."""
    given = {"bits": 35, "codebook_size": 16, "epochs": 0, "temperature": (1.0,), **options}
    return fit_codec(sample_of(labels), FitConfig(**given), FitHooks()).eval()


@torch.no_grad()
def decoded(codec: VqaeCodec, labels: Tensor) -> Tensor:
    return codec.decode(codec.encode(labels))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("exact", [1, 3])
def test_exact_classes_keep_mass_and_order_whatever_the_other_logits(labels: Tensor, exact: int, temperature: float) -> None:
    raw, others = labels.float(), 0.3 * torch.randn(2000, 40, generator=torch.Generator().manual_seed(1))
    ids, levels = split_exact(raw, exact, (temperature, 20.0))
    assert torch.equal(ids, raw.topk(exact, 1).indices)
    joined = join_exact(others, ids, levels, (temperature, 20.0))
    assert torch.equal(joined.topk(exact, 1).indices, ids)
    share, want = (F.softmax(x / temperature, 1).gather(1, ids).sum(1) for x in (joined, raw))
    inside = (
        (levels > 0).all(1) & (levels < 31).all(1) & (joined.scatter(1, ids, -1e4).amax(1) + 0.06 < joined.gather(1, ids).amin(1))
    )
    assert inside.float().mean() > 0.2, "too few labels whose other classes are not clamped"
    assert (torch.logit(share) - torch.logit(want))[inside].abs().max() <= STEP / 2 + 0.1


def test_exact_classes_keep_the_top_1_class_and_lower_the_kl(labels: Tensor) -> None:
    with_exact, without = fit(labels, exact_classes=1), fit(labels, bits=36)
    assert sum(with_exact.code_bits) <= 35
    assert torch.equal(decoded(with_exact, labels).argmax(1), labels.float().argmax(1))
    losses = [float(kl_divergence(labels.float(), decoded(codec, labels), 1.0).mean()) for codec in (with_exact, without)]
    assert losses[0] < 0.8 * losses[1]
    assert with_exact.decoder.contrast.tolist() == [1] * (with_exact.config.slots + 1), "labels with exact classes are calibrated"


def test_nested_rates_keep_the_exact_classes(labels: Tensor) -> None:
    codec = fit(labels, exact_classes=2)
    nested = codec.at_slots(1)
    assert nested.code_bits == [4, 6, 6, 5, 5]
    assert torch.equal(decoded(nested, labels).topk(2, 1).indices, labels.float().topk(2, 1).indices)


def test_auto_chooses_exact_classes_by_bits_and_temperature(labels: Tensor) -> None:
    stats = dataset_stats(sample_of(labels))
    exact_classes = {
        (bits, t): resolve(FitConfig(exact_classes=None, bits=bits, codebook_size=16, temperature=(t,)), stats).head
        for bits in (18, 24, 128)
        for t in (1.0, 20.0)
    }
    assert exact_classes == {(18, 1.0): 0, (24, 1.0): 1, (128, 1.0): 2, (18, 20.0): 0, (24, 20.0): 0, (128, 20.0): 0}


def test_exact_classes_that_exceed_the_bits_are_refused(labels: Tensor) -> None:
    with pytest.raises(UsageError, match="--exact-classes 4 takes 44 bits, 11 a class; --bits is 35"):
        fit(labels, exact_classes=4)
    with pytest.raises(UsageError, match=r"exact_classes is 17; it must be 0\.\.16"):
        FitConfig(exact_classes=17)


def test_a_file_with_an_exact_class_out_of_range_is_refused(
    labels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "dump.npy", labels.numpy())
    codec = fit(labels, exact_classes=1)
    vqlabel.pack(tmp_path / "dump.npy", tmp_path / "good.vql", codec=codec)
    np.testing.assert_array_equal(vqlabel.open(tmp_path / "good.vql")[:].argmax(1), labels.float().argmax(1))
    encode = codec.encode
    monkeypatch.setattr(
        codec, "encode", lambda *given: encode(*given).index_fill_(1, torch.tensor([codec.config.slots]), 40)
    )  # of 6 bits
    vqlabel.pack(tmp_path / "dump.npy", tmp_path / "bad.vql", codec=codec)
    with pytest.raises(BadContainer, match=r"code 40 is outside 0\.\.39"):
        vqlabel.open(tmp_path / "bad.vql")[:]
