"""Fits of the VQAE for tokens: what they must not depend on."""

from dataclasses import replace

import pytest
import torch
from pretended_cuda import pretended_cuda

from tests.text_corpus import small_head, small_split
from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.sample import TextSample, TextSplit
from vqlabel.config import TextFitConfig
from vqlabel.workflows.text.fit import fit_sample

CONFIG = TextFitConfig(bits=24, slots=3, codebook_size=8, ids=2, width=16, window=2, epochs=3)


def in_units(split: TextSplit, unit: float) -> TextSplit:
    """The same labels: hidden states of other units, and the head that undoes them."""
    head = replace(split.labels.head, weight=split.labels.head.weight / unit)
    return replace(split, labels=HiddenLabels(hidden=split.labels.hidden.float() * unit, head=head))


def curve(unit: float, latent: int | None) -> torch.Tensor:
    """[prices] held-out KL of a fit."""
    train, held_out = (in_units(small_split(40, seed, small_head()), unit) for seed in (0, 1))
    report = fit_sample(TextSample(train=train, held_out=held_out), replace(CONFIG, latent=latent))[1]
    return torch.tensor([rate["kl"] for rate in report["rates"]])


@pytest.mark.parametrize("latent", [6, 8])
def test_a_fit_does_not_depend_on_the_units_of_hidden_states(latent: int) -> None:
    """Latents of 8 numbers are the hidden states themselves; 6 are directions, with units of their own."""
    expected = curve(1.0, latent)
    assert expected[-1] < 0.5 * expected[0]
    torch.testing.assert_close(curve(64.0, latent), expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("changes", [{}, {"latent": 6, "embed_head": False}, {"prior": False}])
def test_a_fit_on_cuda_gives_the_same_codec_as_on_the_cpu(changes: dict[str, object]) -> None:
    sample = TextSample(train=small_split(8), held_out=small_split(4, seed=1))
    config = replace(CONFIG, slots=2, epochs=1, layers=1, **changes)  # type: ignore[arg-type]
    codec, report = fit_sample(sample, config)
    with pretended_cuda():
        cuda_codec, cuda_report = fit_sample(sample, replace(config, device="cuda"))
    assert cuda_report["rates"] == report["rates"]
    for (name, weight), (cuda_name, cuda_weight) in zip(codec.state_dict().items(), cuda_codec.state_dict().items(), strict=True):
        assert name == cuda_name and cuda_weight.device.type == "cpu" and torch.equal(weight, cuda_weight)
