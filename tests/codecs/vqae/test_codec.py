"""The learned codec: loss by rate, effect of training, nested rates, refused files and configurations."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqlabel import FitConfig
from vqlabel.codecs import CODECS, FitHooks, LabelCodec, LabelSample, build_codec, fit_codec, load_codec, save_codec
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.fit.dataset_stats import dataset_stats
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.weights import SCALE
from vqlabel.config import MIX
from vqlabel.errors import BadContainer, UsageError
from vqlabel.metrics.distortion import Distortion, as_logits, mixed_kl_divergence

HELD = 100
TEMPERATURES = (1.0, 4.0, 20.0)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    """1,000 labels of 50 classes whose logits have rank 10."""
    rng = np.random.default_rng(3)
    image = np.tile(rng.normal(size=(100, 10)), (10, 1))
    logits = 1.5 * (image + 0.3 * rng.normal(size=(1000, 10))) @ rng.normal(size=(10, 50)) + 0.1 * rng.normal(size=(1000, 50))
    return torch.from_numpy(logits.astype(np.float16))


def fit(
    labels: Tensor, *, domain: str = "logits", hooks: FitHooks | None = None, nested: bool = False, **options: Any
) -> VqaeCodec:
    """Fit a codec; its nested rates only on request: they are fitted last and leave the codec's own rate unchanged."""
    sample = LabelSample(
        train=labels[:-HELD], held_out=labels[-HELD:], train_context=None, held_out_context=None, domain=domain, dtype="F16"
    )
    config = FitConfig(**{"codebook_size": 8, "bits": 24, "epochs": 2, "gain": 1.0, "temperature": MIX, **options})
    with pytest.MonkeyPatch.context() as patch:
        if not nested:
            patch.setattr("vqlabel.codecs.vqae.fit.train.fit_nested_rates", lambda *_: None)
        codec = fit_codec(sample, config, hooks or FitHooks())
    return codec.eval().requires_grad_(False)


def blank(labels: int, classes: int, domain: str = "logits") -> LabelSample:
    """A sample whose labels have a shape but no values, for `dataset_stats`."""
    empty = torch.empty(1, classes).expand(labels, classes)
    return LabelSample(train=empty, held_out=empty, train_context=None, held_out_context=None, domain=domain, dtype="F16")


def loss_of(
    codec: LabelCodec, labels: Tensor, codes: Tensor | None = None, temperatures: tuple[float, ...] = TEMPERATURES
) -> float:
    """Mean mixed KL of the decoded labels."""
    decoded = codec.decode(codec.encode(labels) if codes is None else codes)
    domain = codec.config.domain
    return float(mixed_kl_divergence(as_logits(labels, domain), as_logits(decoded, domain), temperatures).mean())


@pytest.fixture(scope="module")
def codec(labels: Tensor) -> VqaeCodec:
    return fit(labels)


def test_more_bits_lower_the_held_out_loss(labels: Tensor) -> None:
    losses = [loss_of(fit(labels, bits=bits, epochs=1), labels[-HELD:]) for bits in (3, 6, 12, 24, 48)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]


def test_larger_codebooks_lower_the_held_out_loss(labels: Tensor) -> None:
    losses = [loss_of(fit(labels, slots=4, codebook_size=k), labels[-HELD:]) for k in (2, 8, 32)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("options", [{}, {"code_width": 2}], ids=["residual", "grouped"])
def test_training_lowers_the_held_out_loss_of_the_initial_decoder(labels: Tensor, options: dict[str, Any]) -> None:
    """At a low temperature: at a high one KL is a squared error, which the initialization already minimises."""
    start, trained = (fit(labels, epochs=epochs, temperature=(1.0,), **options) for epochs in (0, 10))
    assert loss_of(trained, labels[-HELD:], temperatures=(1.0,)) < 0.97 * loss_of(start, labels[-HELD:], temperatures=(1.0,))


def test_training_keeps_the_epoch_with_the_lowest_held_out_loss(labels: Tensor) -> None:
    """With 40 labels and 200 epochs, the last epoch has a larger loss than the first and is not kept."""
    epochs: list[dict[str, float]] = []
    states: list[Mapping[str, Any]] = []
    hooks = FitHooks(
        progress=lambda stage, _done, _total, figures: epochs.append(figures) if "round 2" in stage else None,
        save=lambda state: states.append(copy.deepcopy(state)),
    )
    few = labels[-HELD - 40 :]
    codec = fit(few, epochs=200, hooks=hooks)
    losses = [figures["loss"] for figures in epochs]
    assert len(losses) == 200
    assert losses[-1] > 1.01 * min(losses), "the fit does not overfit, so the test shows nothing"
    kept = loss_of(codec, few[-HELD:], states[-1]["codes"][1][codec.config.slots])
    assert kept == pytest.approx(min(losses), rel=1e-4)  # evaluated with stored weights
    before = next(state for state in states if state["stage"] == 2)
    codec.load_state_dict(before["codec"])
    codec.round()
    assert kept <= 1.0001 * loss_of(codec, few[-HELD:], before["codes"][1][codec.config.slots])


@pytest.mark.parametrize("weight_bits", [4, 6])
def test_codes_are_chosen_with_the_quantized_decoder_if_weights_have_few_bits(labels: Tensor, weight_bits: int) -> None:
    states: list[Mapping[str, Any]] = []
    codec = fit(labels, weight_bits=weight_bits, hooks=FitHooks(save=lambda state: states.append(copy.deepcopy(state))))
    chosen = next(state for state in states if state["stage"] == 2)
    codec.load_state_dict(chosen["codec"])
    by = {"as trained": codec.choose(labels[-HELD:], None)}
    codec.round()
    by["as stored"] = codec.choose(labels[-HELD:], None)
    assert not torch.equal(by["as trained"], by["as stored"]), "rounding changes no code, so the test shows nothing"
    assert torch.equal(chosen["codes"][1][codec.config.slots], by["as stored" if weight_bits == 4 else "as trained"])


def test_a_fit_at_a_high_temperature_has_the_lower_loss_there(labels: Tensor) -> None:
    low, high = (fit(labels, epochs=2, temperature=(t,)) for t in (1.0, 20.0))
    assert loss_of(high, labels[-HELD:], temperatures=(20.0,)) < 0.7 * loss_of(low, labels[-HELD:], temperatures=(20.0,))


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_the_mean_logit_is_decoded_for_students_trained_by_squared_error(labels: Tensor, temperature: float) -> None:
    level = 5 + 0.3 * labels.float()[:, :3].mean(1)  # as a teacher's: a constant plus a function of the label
    moved = (labels.float() - labels.float().mean(1, keepdim=True) + level[:, None]).half()
    codec = fit(moved, temperature=(temperature,), epochs=5)
    decoded = codec.decode(codec.encode(moved[-HELD:]))
    lost = decoded.mean(1) - moved[-HELD:].float().mean(1)
    assert float(lost.square().mean()) < 0.3 * float(level.var())
    figures = Distortion(temperatures=())
    figures.add(moved[-HELD:], decoded)
    assert figures.figures()["mse"] < 0.5 * float(moved.float().var(0).mean())


def test_a_mean_logit_with_a_large_spread_does_not_raise_the_kl(labels: Tensor) -> None:
    level = labels.float()[:, :3].mean(1) - labels.float()[:, :3].mean()
    losses = []
    for size in (0.0, 1.0, 30.0):
        moved = labels + size * level[:, None]
        losses.append(loss_of(fit(moved, temperature=(1.0,), epochs=4), moved[-HELD:], temperatures=(1.0,)))
    assert max(losses[1:]) < 1.1 * losses[0]


def test_a_nested_rate_keeps_the_effort_and_the_rates_below_it(labels: Tensor) -> None:
    nested = fit(labels, slots=8, nested=True)
    nested.set_effort("best")
    for codec in (nested.at_slots(4), nested.at_slots(3), nested.truncate(2)):
        assert codec.effort == "best"
    assert nested.at_slots(4).at_slots(2).decoder.out.equal(nested.at_slots(2).decoder.out)
    assert set(nested.at_slots(8).nested) == {1, 2, 4}


@pytest.mark.usefixtures("precision")
def test_masked_classes_do_not_raise_the_loss_of_the_others(labels: Tensor) -> None:
    masked = labels.clone()
    masked[:, 40:] = -1e4
    plain, hidden = (fit(x, temperature=(1.0,)) for x in (labels[:, :40], masked))
    alone, beside = (loss_of(codec, x[-HELD:], temperatures=(1.0,)) for codec, x in ((plain, labels[:, :40]), (hidden, masked)))
    assert beside < 1.1 * alone


def test_if_most_classes_are_masked_the_others_decode_near_0(labels: Tensor) -> None:
    masked = labels.clone()
    masked[:, 10:] = -1e4
    codec = fit(masked, temperature=(1.0,))
    assert float(codec.decode(codec.encode(masked[-HELD:])).amax(1).mean().abs()) < 10  # 8,000 where the mean is 0


def test_soft_targets_of_two_classes_at_a_high_temperature_fit_fp16() -> None:
    """They exceed the range of fp16 unless they are scaled to it."""
    two = 60 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    started, trained = (
        loss_of(fit(two, bits=3, epochs=epochs, temperature=(20.0,)), two[-HELD:], temperatures=(20.0,)) for epochs in (0, 20)
    )
    assert trained < 0.9 * started


def test_probabilities_have_the_loss_of_their_logits(labels: Tensor, codec: VqaeCodec) -> None:
    probs = torch.softmax(labels.float(), 1)
    shares = fit(probs, domain="probs")
    assert loss_of(shares, probs[-HELD:]) == pytest.approx(loss_of(codec, labels[-HELD:]), rel=0.2)


def test_more_effort_lowers_the_loss(labels: Tensor, codec: VqaeCodec) -> None:
    losses = []
    for effort in ("fast", "normal", "best"):
        codec.set_effort(effort)
        losses.append(loss_of(codec, labels))
    codec.set_effort("normal")
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.97 * losses[0]


def test_a_shift_of_the_logits_changes_no_code(labels: Tensor, codec: VqaeCodec) -> None:
    shifted = labels.float() + 3
    assert float((codec.encode(labels) == codec.encode(shifted)).all(1).float().mean()) > 0.98


def test_decoding_is_differentiable_in_the_decoders_weights(labels: Tensor) -> None:
    codec = fit(labels).requires_grad_(True)
    codec.decode(codec.encode(labels[:9])).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in codec.decoder.parameters())


@pytest.mark.parametrize(("bits", "k"), [(1, None), (7, None), (64, None), (128, 256), (100, 1000), (9, 2)])
@pytest.mark.parametrize("code_width", [None, 3])
def test_a_label_has_at_most_the_requested_bits(bits: int, k: int | None, code_width: int | None) -> None:
    config = resolve(FitConfig(bits=bits, codebook_size=k, code_width=code_width), dataset_stats(blank(24_000, 1000)))
    rate = config.slots * config.code_bits
    assert bits - config.code_bits < rate <= bits


@pytest.mark.parametrize(
    ("latent", "code_width", "k", "rate"), [(32, 4, 256, 64), (64, 2, 16, 128), (30, 10, 1024, 30), (8, 8, 2, 1)]
)
def test_the_rate_of_groups_is_latent_over_code_width_times_the_bits_of_a_code(
    latent: int, code_width: int, k: int, rate: int
) -> None:
    """arXiv 2603.03808: d_h / d_c * log2 k."""
    config = resolve(FitConfig(latent=latent, code_width=code_width, codebook_size=k), dataset_stats(blank(24_000, 1000)))
    assert (config.quantizer, config.slots) == ("grouped", latent // code_width)
    codec = VqaeCodec(config)
    assert sum(codec.code_bits) == rate == latent // code_width * int(np.log2(k))


def test_given_sizes_are_kept_and_the_others_follow() -> None:
    request = FitConfig(slots=3, codebook_size=100, latent=20, weight_bits=5, temperature=(2.0,))
    config = resolve(request, dataset_stats(blank(24_000, 1000, "probs")))
    assert (config.slots, config.codebook_size, config.latent, config.weight_bits) == (3, 100, 20, 5)
    assert (config.code_bits, config.code_width, config.quantizer) == (7, 20, "residual")
    assert (config.classes, config.domain, config.temperature) == (1000, "probs", (2.0,))


def test_a_small_dump_gets_a_small_codec() -> None:
    small, large = (resolve(FitConfig(bits=64), dataset_stats(blank(labels, 1000))) for labels in (100, 100_000))
    assert small.codebook_size <= 16 < large.codebook_size == 256
    assert small.latent < large.latent
    assert resolve(FitConfig(), dataset_stats(blank(100_000, 5))).latent == 4  # centred logits of 5 classes have rank 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 10, "code_width": 4}, "code_width is 4; it must be latent / slots = 10/2 for grouped slots"),
        ({"latent": 16, "code_width": 4, "slots": 3}, "code_width is 4; it must be latent / slots = 16/3 for grouped slots"),
        ({"bits": 1 << 14, "codebook_size": 256}, r"slots is 2048; it must be 0\.\.1024"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(FitConfig(**options), dataset_stats(blank(24_000, 1000)))


def changed(tensors: dict[str, Tensor], name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    rest = {key: value for key, value in tensors.items() if key != name}
    return rest if tensor is None else {**rest, name: tensor}


def test_tensors_that_do_not_fit_the_configuration_are_refused(codec: VqaeCodec) -> None:
    config, tensors = codec.config.to_dict(), codec.decoder_tensors()
    build_codec("vqae", config, tensors)
    for name in tensors:
        with pytest.raises(BadContainer, match=rf"the codec has no tensor '{name}'; the file is incomplete"):
            build_codec("vqae", config, changed(tensors, name, None))
        wide = torch.cat([tensors[name], tensors[name]])
        with pytest.raises(BadContainer, match=rf"codec tensor '{name}' has shape .*; its configuration declares"):
            build_codec("vqae", config, changed(tensors, name, wide))
        for value in (float("nan"), float("-inf")):
            if tensors[name].is_floating_point():
                with pytest.raises(BadContainer, match=rf"codec tensor '{name}' holds NaN or Inf"):
                    build_codec("vqae", config, changed(tensors, name, torch.full_like(tensors[name], value)))
    with pytest.raises(BadContainer, match=r"has shape .*; its configuration declares"):
        build_codec("vqae", {**config, "classes": 1 << 20}, tensors)


def test_matrices_of_8_bits_are_stored_as_int8_and_codebooks_with_one_scale_per_vector(labels: Tensor) -> None:
    codec = fit(labels, weight_bits=8, epochs=1)
    tensors, latent = codec.decoder_tensors(), codec.config.latent
    assert latent > 8
    book = tensors["decoder.codebook"]
    assert (book.dtype, list(book.shape)) == (torch.int8, [8, 8, latent])
    assert list(tensors["decoder.codebook" + SCALE].shape) == [8, 8]
    assert (tensors["decoder.out"].dtype, list(tensors["decoder.out"].shape)) == (torch.int8, [latent, 50])
    assert list(tensors["decoder.out" + SCALE].shape) == [latent]
    assert (tensors["decoder.bias"].dtype, list(tensors["decoder.bias"].shape)) == (torch.float16, [50])
    assert set(tensors) == {"decoder." + name for name in ("codebook", "codebook.scale", "out", "out.scale", "bias")}


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_a_fitted_decoder_equals_the_one_built_from_its_stored_tensors(labels: Tensor, bits: int) -> None:
    codec = fit(labels, weight_bits=bits, nested=True)
    codes = codec.encode(labels)
    built = build_codec("vqae", codec.config.to_dict(), codec.decoder_tensors())
    assert torch.equal(built.decode(codes), codec.decode(codes))
    assert codec.decoder_tensors()["decoder.out"].nbytes == -(-codec.config.latent * 50 * bits // 8)


def test_more_weight_bits_lower_the_held_out_loss(labels: Tensor) -> None:
    losses = [loss_of(fit(labels, weight_bits=bits), labels[-HELD:]) for bits in (2, 4, 8)]
    assert losses == sorted(losses, reverse=True)


def test_the_seed_determines_the_codec(labels: Tensor) -> None:
    first, second, other = (fit(labels, seed=seed) for seed in (5, 5, 6))
    for name, tensor in first.decoder_tensors().items():
        assert torch.equal(second.decoder_tensors()[name], tensor)
    assert any(not torch.equal(other.decoder_tensors()[name], tensor) for name, tensor in first.decoder_tensors().items())


def test_a_fit_does_not_change_the_global_random_state(labels: Tensor) -> None:
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    fit(labels, epochs=1)
    assert torch.equal(torch.rand(3), want)


def test_every_codec_is_registered_under_its_kind_and_configuration(logits: NDArray[np.float16]) -> None:
    for kind, entry in CODECS.items():
        assert entry.config.kind == kind and issubclass(entry.codec, LabelCodec) and callable(entry.fit)


def test_every_nested_rate_is_close_to_a_codec_fitted_for_it_alone(labels: Tensor) -> None:
    nested = fit(labels, slots=8, epochs=10, nested=True)
    losses = []
    for slots in (1, 2, 4):
        lower, alone = nested.at_slots(slots).requires_grad_(False), fit(labels, slots=slots, epochs=10)
        assert lower.encode(labels).shape == (len(labels), slots) and sum(lower.code_bits) == 3 * slots
        losses.append(loss_of(lower, labels[-HELD:]))
        assert losses[-1] < 1.08 * loss_of(alone, labels[-HELD:])
    losses.append(loss_of(nested, labels[-HELD:]))
    assert losses == sorted(losses, reverse=True)


def test_a_nested_rate_has_a_lower_loss_than_the_truncated_codec(labels: Tensor) -> None:
    nested = fit(labels.repeat(10, 1), slots=4, epochs=6, temperature=(1.0,), nested=True)
    for slots in (1, 2):
        own, shared = (codec.requires_grad_(False) for codec in (nested.at_slots(slots), nested.truncate(slots)))
        assert loss_of(own, labels, temperatures=(1.0,)) < 0.97 * loss_of(shared, labels, temperatures=(1.0,))
    assert nested.at_slots(3).decoder.out.equal(nested.decoder.out), "a rate without a fit of its own is the truncated codec"


def test_each_nested_rate_is_initialized_from_the_rate_above(labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialized from the full rate instead, the last of four would have a KL 9 % higher."""
    truncate, truncations = VqaeCodec.truncate, []
    monkeypatch.setattr(
        VqaeCodec, "truncate", lambda codec, slots: truncations.append((codec.config.slots, slots)) or truncate(codec, slots)
    )
    fit(labels, slots=8, nested=True)
    assert truncations == [(8, 4), (4, 2), (2, 1)]


def test_nested_rates_are_stored_in_codec_files_only(labels: Tensor, tmp_path: Path) -> None:
    nested = fit(labels, slots=4, nested=True)
    save_codec(nested, tmp_path / "some.codec")
    loaded = load_codec(tmp_path / "some.codec")[0]
    assert isinstance(loaded, VqaeCodec) and set(loaded.nested) == {1, 2}
    for slots in (1, 2, 3):
        for name, tensor in nested.at_slots(slots).decoder_tensors().items():
            assert torch.equal(loaded.at_slots(slots).decoder_tensors()[name], tensor), (slots, name)
    assert not any(name.startswith("rate.") for name in nested.decoder_tensors())
    whole = build_codec(nested.kind, nested.config.to_dict(), nested.decoder_tensors())
    assert isinstance(whole, VqaeCodec) and not whole.nested
    for slots in (0, 4, 9):
        forged = {name.replace("rate.2.", f"rate.{slots}."): tensor for name, tensor in nested.file_tensors().items()}
        with pytest.raises(
            BadContainer, match=rf"a nested rate of {slots} slots in a codec of 4 \(residual\) slots; damaged or forged"
        ):
            build_codec(nested.kind, nested.config.to_dict(), forged)
    broken = nested.file_tensors()
    del broken["rate.2.decoder.out"]
    with pytest.raises(BadContainer, match=r"the codec has no tensor 'decoder\.out'; the file is incomplete"):
        build_codec(nested.kind, nested.config.to_dict(), broken)


def test_a_number_of_slots_out_of_range_is_refused(labels: Tensor, codec: VqaeCodec) -> None:
    for slots in (0, codec.config.slots + 1):
        with pytest.raises(UsageError, match=rf"slots is {slots}; it must be 1\.\.8, the slots that the codec was fitted with"):
            codec.at_slots(slots)
    with pytest.raises(UsageError, match="quantizer is 'grouped'; it must be residual"):
        fit(labels, code_width=2).at_slots(1)
