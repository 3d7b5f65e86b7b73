"""Debiasing: the gain of decoded labels about their mean."""

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel import FitConfig
from vqlabel.codecs import FitHooks, LabelSample, build_codec, fit_codec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.fit.debias import MAX_GAIN
from vqlabel.errors import UsageError
from vqlabel.metrics.distortion import kl_divergence


@pytest.fixture(scope="module")
def labels() -> Tensor:
    """2,000 independent labels of 30 classes, which few bits cannot represent."""
    generator = torch.Generator().manual_seed(5)
    return (2 * torch.randn(2000, 30, generator=generator)).half()


@cache
def fit(labels: Tensor, **options: Any) -> VqaeCodec:
    """Fit once per labels and options: no test changes the codec."""
    sample = LabelSample(
        train=labels[:-200], held_out=labels[-200:], train_context=None, held_out_context=None, domain="logits", dtype="F16"
    )
    return fit_codec(sample, FitConfig(**{"bits": 16, "codebook_size": 16, "epochs": 0, **options}), FitHooks()).eval()


@torch.no_grad()
def decoded(codec: VqaeCodec, labels: Tensor) -> Tensor:
    return codec.decode(codec.encode(labels))


def slope(of: Tensor, on: Tensor, temperature: float) -> float:
    """Slope of regressing centred probabilities of logits `of` on those of `on`."""
    x, y = (F.softmax(logits.float() / temperature, 1) for logits in (on, of))
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x * y).sum() / x.square().sum())


@pytest.mark.parametrize(
    ("options", "temperature"),
    [({}, 1.0), ({}, 4.0), ({"bits": 24}, 20.0), ({"bits": 24, "code_width": 4}, 4.0)],
    ids=["residual-1", "residual-4", "residual-20", "grouped-4"],
)
def test_decoded_labels_are_unbiased_and_calibrated_ones_are_not(
    labels: Tensor, options: dict[str, Any], temperature: float
) -> None:
    codec, calibrated = (fit(labels, temperature=(temperature,), gain=gain, **options) for gain in (None, 1.0))
    train = labels[:-200]
    assert slope(decoded(calibrated, train), train, temperature) < 0.95, "the codes are too accurate for this test"
    assert slope(decoded(codec, train), train, temperature) == pytest.approx(1, rel=0.008)


def test_directions_with_little_information_in_codes_get_a_larger_gain() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = (torch.randn(2000, 30, generator=generator) * torch.linspace(3, 0.5, 30)).half()  # one direction per class
    codec, calibrated = (fit(labels, bits=32, latent=29, temperature=(1.0,), gain=gain) for gain in (None, 1.0))
    assert codec.decoder.lift is not None
    assert calibrated.decoder.lift is None
    gains = []
    for classes in (slice(0, 10), slice(20, 30)):
        spread = [decoded(fitted, labels)[:, classes].std(0).mean() for fitted in (codec, calibrated)]
        gains.append(float(spread[0] / spread[1]))
    assert gains[1] > 1.1 * gains[0] > 1.1


def test_of_several_temperatures_the_one_with_the_smallest_gain_is_unbiased(labels: Tensor) -> None:
    codec, train = fit(labels, bits=32, temperature=(8.0, 3.0, 1.5)), labels[:-200]
    assert codec.decoder.lift is not None
    slopes = [slope(decoded(codec, train), train, t) for t in codec.config.temperature]
    assert max(slopes) == pytest.approx(1, rel=0.008)
    assert min(slopes) < 0.992, "all temperatures have the same gain, so the test shows nothing"


def test_exact_classes_have_no_tail_gain(labels: Tensor) -> None:
    assert fit(labels, temperature=(1.0,), exact_classes=1, bits=26).decoder.lift is None, "exact classes are for the lowest KL"


def test_calibrated_labels_of_a_fit_are_those_of_a_fit_with_gain_1(labels: Tensor) -> None:
    codec, plain = (fit(labels, temperature=(1.0,), gain=gain) for gain in (None, 1.0))
    calibrated = codec.calibrated()
    assert calibrated.config == plain.config
    assert torch.equal(decoded(calibrated, labels), decoded(plain, labels))
    assert (codec.gain, calibrated.gain) == (codec.decoder.contrast[-1], 1)


def test_a_gain_of_1_gives_the_lowest_kl(labels: Tensor) -> None:
    losses = {
        gain: float(
            kl_divergence(labels.float(), decoded(fit(labels, temperature=(1.0,), gain=gain, epochs=1), labels), 1.0).mean()
        )
        for gain in (0.8, 1.0, 1.3)
    }
    assert min(losses, key=lambda gain: losses[gain]) == 1.0


def test_the_gain_changes_neither_codes_nor_the_mean_logits(labels: Tensor) -> None:
    low, high = (fit(labels, gain=gain) for gain in (1.0, 1.5))
    assert torch.equal(low.encode(labels), high.encode(labels))
    logits = [decoded(codec, labels[:-200]) for codec in (low, high)]
    centred = [decoded_logits - decoded_logits.mean(0) for decoded_logits in logits]
    torch.testing.assert_close(logits[0].mean(0), logits[1].mean(0), atol=2e-2, rtol=0)
    torch.testing.assert_close(1.5 * centred[0], centred[1], atol=2e-2, rtol=1e-3)


def test_identical_labels_keep_a_gain_of_1() -> None:
    codec = fit(torch.arange(30.0).expand(400, 30).half())
    assert codec.decoder.contrast.tolist() == [1] * 5


@pytest.mark.parametrize("temperature", [(20.0,), (1.0,)])
def test_codes_that_no_gain_makes_unbiased_give_calibrated_labels(labels: Tensor, temperature: tuple[float, ...]) -> None:
    """At MAX_GAIN they are hardly closer to the raw labels than one mean label for all; calibrated ones are closer."""
    one_bit = {"bits": 1, "codebook_size": 2, "temperature": temperature, "epochs": 3}
    codec, plain = (fit(labels, **one_bit, gain=gain) for gain in (None, 1.0))
    assert codec.gain_limited and not plain.gain_limited
    assert (codec.gain, codec.config) == (1, plain.config)
    assert codec.decoder_tensors().keys() == plain.decoder_tensors().keys()
    assert torch.equal(decoded(codec, labels), decoded(plain, labels))
    raw, t = labels[:-200].float(), temperature[0]
    mean = t * F.softmax(raw / t, 1).mean(0).log()
    far = fit(labels, **one_bit, gain=MAX_GAIN)
    by_mean, limited, calibrated = (
        float(kl_divergence(raw, other, t).mean()) for other in (mean.expand_as(raw), decoded(far, raw), decoded(codec, raw))
    )
    assert calibrated < 0.99 * limited < limited < by_mean < 1.03 * limited


def test_unbiased_labels_that_are_worse_than_one_label_for_all_are_calibrated() -> None:
    """A gain up to MAX_GAIN makes them unbiased, but 100 labels are too few to fit codes for others."""
    labels = (torch.randn(300, 30, generator=torch.Generator().manual_seed(5))).half()
    options: dict[str, Any] = {"bits": 10, "codebook_size": 2, "temperature": (1.0,)}
    codec, plain = (fit(labels, gain=gain, **options) for gain in (None, 1.0))
    assert codec.gain_limited and torch.equal(decoded(codec, labels), decoded(plain, labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqlabel.codecs.vqae.fit.debias.is_useful", lambda *_: True)
        unbiased = fit.__wrapped__(labels, **options)
    assert 1 < unbiased.gain < MAX_GAIN
    raw, held_out = labels[:100].float(), labels[100:].float()
    mean = F.softmax(raw, 1).mean(0).log()
    by_mean, by_unbiased, by_calibrated = (
        float(kl_divergence(held_out, other, 1.0).mean())
        for other in (mean.expand_as(held_out), decoded(unbiased, held_out), decoded(codec, held_out))
    )
    assert by_calibrated < by_mean < by_unbiased


def test_a_codec_file_restores_a_calibrated_nested_rate_of_a_codec_with_a_tail_gain(labels: Tensor) -> None:
    codec = fit(labels, bits=16, codebook_size=2, temperature=(1.0,))
    low = codec.nested[1]
    assert codec.config.lift and not low.config.lift
    assert low.gain_limited and low.gain == 1 < codec.gain
    loaded = build_codec("vqae", codec.config.to_dict(), codec.file_tensors())
    assert isinstance(loaded, VqaeCodec)
    assert loaded.at_slots(1).config == low.config
    assert torch.equal(decoded(loaded.at_slots(1), labels), decoded(low, labels))


@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_the_gain_is_stored_unless_it_is_1(labels: Tensor, gain: float) -> None:
    codec = fit(labels, gain=gain)
    tensors = codec.decoder_tensors()
    assert ("decoder.contrast" in tensors) == ("decoder.center" in tensors) == (gain != 1)
    loaded = build_codec("vqae", codec.config.to_dict(), tensors)
    assert torch.equal(decoded(codec, labels), decoded(loaded, labels))  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", [0.0, -1.0, 11.0, float("nan")])
def test_a_gain_out_of_range_is_refused(gain: float) -> None:
    with pytest.raises(UsageError, match=r"gain.*must be 0\.1\.\.10"):
        FitConfig(gain=gain)


def test_every_rate_of_a_codec_has_its_own_gain(labels: Tensor) -> None:
    codec, train = fit(labels, bits=32, temperature=(1.0,)), labels[:-200]
    for slots in (8, 4, 2):  # the rates of the fit; gains of others are interpolated
        for lower in (codec.at_slots(slots), codec.truncate(slots)):
            assert slope(decoded(lower, train), train, 1.0) == pytest.approx(1, rel=0.02)
    factors = codec.decoder.contrast.tolist()
    assert factors[1:] == sorted(factors[1:], reverse=True)
    assert factors[8] < factors[6] < factors[4]
