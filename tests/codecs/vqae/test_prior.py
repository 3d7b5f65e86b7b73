"""The prior: reading of its inputs, its predictions, and when it is stored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vqlabel import FitConfig
from vqlabel.codecs import FitHooks, LabelSample, build_codec, fit_codec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.config import CONTEXT_FIELDS, PriorConfig
from vqlabel.codecs.vqae.fit.dataset_stats import dataset_stats
from vqlabel.codecs.vqae.fit.evaluate import _best_constant
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.prior import WIDTHS, Prior, PriorInputs, describe_context, read_prior_inputs
from vqlabel.codecs.vqae.sizes import bits_of
from vqlabel.config import MAX_VIEW
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import Context
from vqlabel.metrics.distortion import as_logits, mixed_kl_divergence
from vqlabel.metrics.likelihood import likelihood_of

IMAGES, EPOCHS, CLASSES, HELD = 30, 20, 25, 60
CPU = torch.device("cpu")
CONFIG = PriorConfig(images=IMAGES, image_width=4, hidden=8, fields=CONTEXT_FIELDS, view=224)


def draw_context(n: int, seed: int = 0) -> Context:
    """A context with all fields, as SRe2L dumps have it."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.3, 1, (2, n, 2))
    crop = np.concatenate([rng.random((2, n, 2)) * (1 - size), size], 2).astype(np.float32)
    return Context(
        image=rng.integers(0, IMAGES, n),
        partner=rng.integers(0, IMAGES, n),
        mix=rng.random(n).astype(np.float32),
        crop=crop[0],
        flip=rng.random(n) < 0.5,
        partner_crop=crop[1],
        partner_flip=rng.random(n) < 0.5,
        box=rng.integers(0, 225, (n, 4)),
    )


def mixed_labels(*, noise: float, shuffled: bool = False) -> tuple[Tensor, Context]:
    """Labels [600, 25] that are the lambda-mix of the labels of two images, plus noise."""
    rng = np.random.default_rng(3)
    of_image = 1.5 * rng.standard_normal((IMAGES, 6)) @ rng.standard_normal((6, CLASSES))
    image = np.concatenate([rng.permutation(IMAGES) for _ in range(EPOCHS)])
    partner = np.concatenate([rng.permutation(IMAGES) for _ in range(EPOCHS)])
    lam = rng.random(IMAGES * EPOCHS).astype(np.float32)
    labels = lam[:, None] * of_image[image] + (1 - lam[:, None]) * of_image[partner]
    labels += noise * rng.standard_normal(labels.shape)
    if shuffled:
        image, partner, lam = rng.permutation(image), rng.permutation(partner), rng.permutation(lam)
    return torch.from_numpy(labels.astype(np.float32)), Context(image=image, partner=partner, mix=lam)


def sample_of(labels: Tensor, context: Context | None) -> LabelSample:
    seen, held = (None if context is None else context.rows(rows) for rows in (slice(-HELD), slice(-HELD, None)))
    return LabelSample(
        train=labels[:-HELD], held_out=labels[-HELD:], train_context=seen, held_out_context=held, domain="logits", dtype="F32"
    )


def fit(labels: Tensor, context: Context | None, hooks: FitHooks | None = None, **options: Any) -> VqaeCodec:
    config = FitConfig(**{"bits": 9, "codebook_size": 8, "image_width": 8, "hidden": 16, "epochs": 2, **options})
    return fit_codec(sample_of(labels, context), config, hooks or FitHooks()).eval().requires_grad_(False)


def held_loss(codec: VqaeCodec, labels: Tensor, context: Context) -> float:
    side = context.rows(slice(-HELD, None))
    decoded = codec.decode(codec.encode(labels[-HELD:], side), side)
    return float(mixed_kl_divergence(as_logits(labels[-HELD:], "logits"), as_logits(decoded, "logits"), (1.0, 4.0)).mean())


# Reading of inputs.


def test_a_context_is_described_by_its_fields_images_and_view() -> None:
    whole = draw_context(100)
    assert describe_context(whole) == (CONTEXT_FIELDS, 1 + max(whole.image.max(), whole.partner.max()), whole.box.max())
    images = Context(image=np.array([4, 2]))
    assert describe_context(images) == ((), 5, 1)
    assert describe_context(Context(image=np.array([4, 2]), partner=np.array([0, 9]))) == ((), 10, 1)
    assert describe_context(Context()) == ((), 0, 1)
    assert describe_context(Context(image=np.empty(0, np.int64))) == ((), 0, 1)


def test_without_a_partner_mixing_fields_are_not_used() -> None:
    lonely = dataclasses.replace(draw_context(10), partner=None)
    assert describe_context(lonely)[0] == ("crop", "flip")


def test_the_view_of_any_box_is_valid_in_a_configuration() -> None:
    far = dataclasses.replace(draw_context(10), box=np.full((10, 4), 1 << 30))
    assert describe_context(far)[2] == MAX_VIEW
    assert describe_context(dataclasses.replace(far, box=np.zeros((10, 4), np.int64)))[2] == 1


def test_a_context_becomes_images_share_and_features() -> None:
    context = draw_context(50)
    inputs = read_prior_inputs(CONFIG, context, CPU)
    assert torch.equal(inputs.image, torch.from_numpy(context.image))
    assert torch.equal(inputs.partner, torch.from_numpy(context.partner))
    assert torch.equal(inputs.share, torch.from_numpy(context.mix)[:, None])
    assert inputs.features.shape == (50, sum(WIDTHS.values()))
    assert inputs.features.dtype == torch.float32


def test_features_follow_the_format() -> None:
    context = Context(
        image=np.array([3]), partner=np.array([7]), mix=np.array([0.25], np.float32), crop=np.array([[0.1, 0.2, 0.5, 0.4]], np.float32),
        flip=np.array([True]), partner_crop=np.array([[0, 0, 1, 1]], np.float32), partner_flip=np.array([False]),
        box=np.array([[0, 56, 112, 224]]),
    )  # fmt: skip
    want = [0.25, 0.1875, -0.4, -0.3, 0, -0.1, 0.5 * np.log(0.2) + 0.5, 0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -0.5, -0.5, -0.25, 0, 0.5]
    np.testing.assert_allclose(read_prior_inputs(CONFIG, context, CPU).features[0], want, atol=1e-6)


def test_features_have_magnitude_1_and_are_finite_for_any_crop() -> None:
    usual = read_prior_inputs(CONFIG, draw_context(2000), CPU).features
    assert float(usual.abs().max()) <= 1.5
    assert float(usual.std(0).min()) > 0.05
    wild = draw_context(4)
    for crop in ([0, 0, 0, 0], [-1e30, 1e30, 1e30, 1e30], [0, 0, -1, 1]):
        row = np.tile(np.array(crop, np.float32), (4, 1))
        features = read_prior_inputs(CONFIG, dataclasses.replace(wild, crop=row, box=np.full((4, 4), 1 << 31)), CPU).features
        assert bool(torch.isfinite(features).all())
        assert float(features.abs().max()) <= 5


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda c: None, r"the codec's prior needs the records' context, and got none; pass it, such as dataset\.context\(index\)"),
        (lambda c: Context(), "the codec's prior needs image of every record, and these have none; fit on this dump, or with --no-prior"),
        (lambda c: dataclasses.replace(c, flip=None), "the codec's prior needs flip of every record, and these have none; fit"),
        (lambda c: dataclasses.replace(c, mix=None, box=None), "the codec's prior needs mix, box of every record"),
        (lambda c: dataclasses.replace(c, image=c.image + 30), r"image \d\d is unknown to the codec's prior, which has 30; fit on this"),
        (lambda c: dataclasses.replace(c, partner=c.partner * 0 + 30), "image 30 is unknown to the codec's prior, which has 30; fit"),
        (lambda c: dataclasses.replace(c, mix=c.mix * np.nan), "a lambda or a crop of these records is NaN or Inf; correct or drop"),
        (lambda c: dataclasses.replace(c, partner_crop=c.crop * np.float32(np.nan)), "a lambda or a crop of these records is NaN"),
    ],
)  # fmt: skip
def test_an_incomplete_or_invalid_context_is_refused(broken: Callable[[Context], Context | None], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_prior_inputs(CONFIG, broken(draw_context(20)), CPU)


def test_fields_that_a_prior_does_not_use_are_ignored() -> None:
    plain = dataclasses.replace(CONFIG, fields=())
    context = draw_context(20)
    inputs = read_prior_inputs(plain, dataclasses.replace(context, partner=context.partner + 1000, mix=context.mix * np.nan), CPU)
    assert torch.equal(inputs.partner, inputs.image)
    assert torch.equal(inputs.share, torch.ones(20, 1))
    assert inputs.features.shape == (20, 0)
    assert read_prior_inputs(plain, Context(image=np.empty(0, np.int64)), CPU).image.shape == (0,)


# Predictions.


def prior(**changes: Any) -> Prior:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Prior(dataclasses.replace(CONFIG, **changes), 6).requires_grad_(False)


def test_at_lambda_1_the_mix_does_not_depend_on_the_partner() -> None:
    """Weights of the partner's own inputs to the hidden layer are set to 0."""
    net = prior(fields=("mix",))
    net.inside.weight[:, 8:12] = 0
    context = dataclasses.replace(draw_context(40), mix=np.ones(40, np.float32))
    config = dataclasses.replace(CONFIG, fields=("mix",))
    other = dataclasses.replace(context, partner=(context.partner + 7) % IMAGES)
    latents, others = (net(read_prior_inputs(config, c, CPU)) for c in (context, other))
    assert torch.equal(latents, others)
    half = np.full(40, 0.5, np.float32)
    latents, others = (net(read_prior_inputs(config, dataclasses.replace(c, mix=half), CPU)) for c in (context, other))
    assert float((latents - others).abs().amax(1).min()) > 1e-4
    none = np.zeros(40, np.float32)
    net.inside.weight[:, 4:8] = 0
    swapped = dataclasses.replace(context, image=(context.image + 7) % IMAGES)
    latents, others = (net(read_prior_inputs(config, dataclasses.replace(c, mix=none), CPU)) for c in (context, swapped))
    assert torch.equal(latents, others), "at lambda 0 it does not depend on the first image"


def test_predictions_do_not_depend_on_other_records() -> None:
    net, inputs = prior(), read_prior_inputs(CONFIG, draw_context(40), CPU)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(inputs.rows(order)), net(inputs)[order])
    assert isinstance(inputs.rows(slice(3, 9)), PriorInputs)
    torch.testing.assert_close(net(inputs.rows(slice(3, 9))), net(inputs)[3:9])


def test_a_prior_predicts_labels_of_mixed_images() -> None:
    labels, context = mixed_labels(noise=0.2)
    with_prior, without = fit(labels, context), fit(labels, context, prior=False)
    assert with_prior.config.prior is not None
    assert with_prior.config.prior.fields == ("mix",)
    assert held_loss(with_prior, labels, context) < 0.3 * held_loss(without, labels, context)


def test_a_prior_without_codes_has_a_lower_loss_than_3_bits_without_a_prior() -> None:
    labels, context = mixed_labels(noise=0.2)
    alone, coded = fit(labels, context, bits=0), fit(labels, context, bits=3, prior=False)
    assert alone.code_bits == []
    assert held_loss(alone, labels, context) < 0.8 * held_loss(coded, labels, context)


def test_codes_lower_the_loss_of_the_prior() -> None:
    labels, context = mixed_labels(noise=1.0)
    losses = [held_loss(fit(labels, context, bits=bits), labels, context) for bits in (0, 6, 18)]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.8 * losses[0]


# When a prior is stored.


def test_a_prior_that_predicts_nothing_is_dropped_unless_requested() -> None:
    labels, context = mixed_labels(noise=0.2, shuffled=True)
    codec = fit(labels, context)
    assert codec.config.prior is None
    assert codec.decoder.prior is None
    assert not codec.needs
    assert not any("prior" in name for name in codec.decoder_tensors())
    assert fit(labels, context, prior=True).config.prior is not None
    with pytest.raises(
        UsageError, match=r"the rate leaves no codes .*, and the prior predicts these labels no better than their mean"
    ):
        fit(labels, context, bits=0)


def test_a_fit_that_dropped_its_prior_resumes_to_the_same_tensors() -> None:
    labels, context = mixed_labels(noise=0.2, shuffled=True)
    saved: list[dict[str, Any]] = []

    def stop(stage: str, done: int, *_: object) -> None:
        if (stage, done) == ("decoder, round 1", 1):
            raise KeyboardInterrupt

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(v) for key, v in value.items()}
        if isinstance(value, list):
            return [copied(v) for v in value]
        return value.clone() if isinstance(value, Tensor) else value

    with pytest.raises(KeyboardInterrupt):
        fit(labels, context, FitHooks(progress=stop, save=lambda state: saved.append(copied(state))))
    resumed, whole = fit(labels, context, FitHooks(resumed=saved[-1])), fit(labels, context)
    assert resumed.config == whole.config
    for name, tensor in whole.decoder_tensors().items():
        assert torch.equal(resumed.decoder_tensors()[name], tensor)


@pytest.mark.parametrize("weight_bits", [4, 6])
def test_a_nested_rate_shares_image_vectors_and_has_its_own_prior_network(weight_bits: int) -> None:
    labels, context = mixed_labels(noise=0.2)
    whole = fit(labels, context, weight_bits=weight_bits)
    loaded = build_codec(whole.kind, whole.config.to_dict(), whole.file_tensors())
    assert isinstance(loaded, VqaeCodec) and loaded.nested
    for slots in whole.nested:
        fitted, read = whole.at_slots(slots), loaded.at_slots(slots)
        codes = fitted.encode(labels, context)
        assert torch.equal(codes, read.encode(labels, context))
        assert torch.equal(fitted.decode(codes, context), read.decode(codes, context))
        assert torch.equal(fitted.decoder_tensors()["decoder.prior.images"], whole.decoder_tensors()["decoder.prior.images"])
        assert f"rate.{slots}.decoder.prior.inside.weight" in whole.file_tensors()
        assert f"rate.{slots}.decoder.prior.images" not in whole.file_tensors()
    earlier = {name: tensor for name, tensor in whole.file_tensors().items() if not name.startswith("rate.1.decoder.prior.")}
    shared = build_codec(whole.kind, whole.config.to_dict(), earlier)
    assert isinstance(shared, VqaeCodec), "older files, whose rates share the whole prior, are read"
    bias = shared.at_slots(1).decoder_tensors()["decoder.prior.outside.bias"]
    assert torch.equal(bias, whole.decoder_tensors()["decoder.prior.outside.bias"])
    broken = whole.file_tensors()
    del broken[f"rate.{slots}.decoder.prior.outside.bias"]
    with pytest.raises(BadContainer, match=r"the codec has no tensor 'decoder\.prior\.outside\.bias'; the file is incomplete"):
        build_codec(whole.kind, whole.config.to_dict(), broken)


def test_training_with_a_prior_fits_the_mean_logit() -> None:
    labels, context = mixed_labels(noise=0.2)
    level = 5 + 0.3 * labels[:, :3].mean(1)
    moved = labels - labels.mean(1, keepdim=True) + level[:, None]
    codec = fit(moved, context, temperature=(1.0,), epochs=5)
    assert codec.config.prior is not None
    lost = codec.decode(codec.encode(moved, context), context).mean(1) - level
    assert float(lost.square().mean()) < 0.4 * float(level.var())


@pytest.mark.parametrize("context", [None, Context(), Context(flip=np.zeros(600, bool))], ids=["none", "empty", "flips"])
def test_records_without_images_have_no_prior_and_a_requested_one_is_refused(context: Context | None) -> None:
    labels, _ = mixed_labels(noise=0.2)
    assert resolve(FitConfig(), dataset_stats(sample_of(labels, context))).prior is None
    with pytest.raises(UsageError, match="prior: these records have no image indices"):
        resolve(FitConfig(prior=True), dataset_stats(sample_of(labels, context)))
    with pytest.raises(
        UsageError,
        match=r"the rate leaves no codes \(0 slots\), and labels cannot be predicted without codes because the dump does not",
    ):
        resolve(FitConfig(bits=0), dataset_stats(sample_of(labels, context)))


def test_images_with_fewer_than_2_labels_have_no_prior_unless_requested() -> None:
    labels, _ = mixed_labels(noise=0.2)
    once, twice = (Context(image=np.arange(600) // views) for views in (1, 3))
    assert resolve(FitConfig(), dataset_stats(sample_of(labels, once))).prior is None
    assert resolve(FitConfig(prior=True), dataset_stats(sample_of(labels, once))).prior is not None
    assert resolve(FitConfig(), dataset_stats(sample_of(labels, twice))).prior is not None


def test_a_prior_is_resolved_from_training_and_held_out_labels() -> None:
    labels, context = mixed_labels(noise=0.2)
    late = dataclasses.replace(context, image=np.where(np.arange(600) >= 570, 99, context.image))
    resolved = resolve(FitConfig(image_width=5, hidden=7), dataset_stats(sample_of(labels, late))).prior
    assert resolved == PriorConfig(images=100, image_width=5, hidden=7, fields=("mix",), view=1)
    assert resolve(FitConfig(prior=False), dataset_stats(sample_of(labels, context))).prior is None
    assert resolve(FitConfig(code_width=2), dataset_stats(sample_of(labels, context))).prior is None


@pytest.mark.parametrize(("weight_bits", "network_bits"), [(2, 4), (5, 7), (6, 8), (7, 8), (8, 8)])
def test_the_prior_network_is_stored_in_2_more_bits(weight_bits: int, network_bits: int) -> None:
    for name in ("codebook", "out", "prior.images"):
        assert bits_of("decoder." + name, weight_bits) == weight_bits
    for name in ("mixed", "inside", "outside"):
        assert bits_of(f"decoder.prior.{name}.weight", weight_bits) == bits_of(f"prior.{name}.weight", weight_bits) == network_bits


@pytest.mark.parametrize("domain", ["logits", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_best_label_for_all_is_the_mean_distribution_at_one_temperature(domain: str, temperature: float) -> None:
    """As the solver for several temperatures finds it, if two are the same."""
    likelihood = likelihood_of(domain)
    labels = 2 * torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    target = likelihood.soft_target(labels, (temperature,)).mean(0, keepdim=True)
    losses = [
        likelihood.cross_entropy(constant, target, (temperature,))
        for constant in (_best_constant(target, domain, (temperature,)), _best_constant(2 * target, domain, 2 * (temperature,)))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
