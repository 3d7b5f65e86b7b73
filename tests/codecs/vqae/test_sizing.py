"""Sizes from budgets: the bytes predicted before a fit are those of the file."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import FitHooks, LabelSample, fit_codec
from vqlabel.codecs.vqae.fit.budget import MIN_LATENT
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats, dataset_stats
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.fit.rules import MAX_LATENT
from vqlabel.codecs.vqae.sizes import codec_bytes, file_bytes
from vqlabel.errors import UsageError
from vqlabel.labels import Context, open_labels
from vqlabel.report import account
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.sample import read_sample

FIELDS = ("mix", "crop", "flip", "partner_crop", "partner_flip", "box")


def stats_of(**changes: Any) -> DatasetStats:
    """A dump of 80,000 labels of 1,000 classes, of 2,000 images."""
    defaults: dict[str, Any] = {
        "labels": 80_000, "train_labels": 70_000, "classes": 1000, "domain": "logits", "images": 2000, "fields": FIELDS, "view": 160,
    }  # fmt: skip
    return DatasetStats(**{**defaults, **changes})


@pytest.mark.parametrize("ratio", [2000, 1000, 500, 250, 125, 60])
@pytest.mark.parametrize("changes", [{}, {"images": 0, "fields": ()}, {"classes": 100}, {"classes": 10_000}], ids=str)
def test_a_budget_is_filled_to_97_percent_and_never_exceeded(ratio: float, changes: dict[str, Any]) -> None:
    dump = stats_of(**changes)
    budget = 2 * dump.labels * dump.classes / ratio
    if budget < 11_000:  # header and two numbers an image
        with pytest.raises(UsageError, match="do not fit into"):
            resolve(FitConfig(ratio=ratio), dump)
        return
    size = file_bytes(resolve(FitConfig(ratio=ratio), dump), dump.labels)
    assert 0.97 * budget <= size <= budget


@pytest.mark.parametrize("variable", [False, True], ids=["fixed", "variable"])
def test_a_budget_too_small_for_the_default_share_of_codes_has_fewer_codes(variable: bool) -> None:
    dump = stats_of(labels=2000, train_labels=1800, classes=100, images=0, fields=())
    least = next(
        size
        for size in range(8300, 40_000, 20)
        if _fits(FitConfig(bytes=size, bits=1, variable_rate=True) if variable else FitConfig(bytes=size, slots=1), dump)
    )
    for size in range(least, 3 * least, 400):
        config = resolve(FitConfig(bytes=size, variable_rate=variable), dump)
        assert file_bytes(config, dump.labels) <= size


def _fits(config: FitConfig, dump: DatasetStats) -> bool:
    try:
        resolve(config, dump)
    except UsageError:
        return False
    return True


def test_variable_bits_are_at_most_those_of_the_slots() -> None:
    for given in ({}, {"ratio": 50}):
        assert resolve(FitConfig(slots=4, variable_rate=True, **given), stats_of()).rate == 16
        assert resolve(FitConfig(slots=4, bits=20, variable_rate=True, **given), stats_of()).rate == 20
        with pytest.raises(UsageError, match=r"bits is 40; it must be at most 32, the bits of --slots 4"):
            resolve(FitConfig(slots=4, bits=40, variable_rate=True, **given), stats_of())


def test_codes_are_dropped_before_the_latent_is_below_its_minimum() -> None:
    few = stats_of(labels=20_000, train_labels=18_000)
    sizes = [resolve(FitConfig(ratio=ratio), few) for ratio in (500, 1000, 1500)]
    assert [(size.slots, size.codebook_size) for size in sizes] == [(2, 256), (1, 16), (0, 256)]
    assert min(size.latent for size in sizes) >= MIN_LATENT
    assert resolve(FitConfig(ratio=1000, codebook_size=64), few).codebook_size == 64
    assert resolve(FitConfig(ratio=1000, slots=1), few).latent < MIN_LATENT  # slots are given
    assert resolve(FitConfig(ratio=2000), few).latent < MIN_LATENT  # no codes left to drop
    assert resolve(FitConfig(ratio=4), stats_of(labels=20_000, classes=8)).latent == 7


def test_codes_are_kept_if_the_latent_is_small_anyway() -> None:
    assert resolve(FitConfig(ratio=8), stats_of(labels=20_000, train_labels=18_000, classes=14)).slots == 2
    alone = stats_of(labels=2000, train_labels=1800, classes=10_000, images=0, fields=())
    bits = [resolve(FitConfig(ratio=ratio), alone).label_bits for ratio in (420, 460, 500)]
    assert bits == sorted(bits, reverse=True) and bits[-1] > 64


@pytest.mark.parametrize("changes", [{}, {"images": 0, "fields": ()}], ids=str)
def test_codebooks_grow_with_the_number_of_labels(changes: dict[str, Any]) -> None:
    sizes = []
    for labels in (10_000, 80_000, 1_000_000):
        config = resolve(FitConfig(ratio=125), stats_of(labels=labels, train_labels=labels * 9 // 10, **changes))
        codes, books = labels * config.slots * config.code_bits / 8, config.slots * config.codebook_size * config.latent
        assert books * config.weight_bits / 8 < 0.2 * codes or config.codebook_size == 16 or config.latent >= MAX_LATENT
        sizes.append(config.codebook_size)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 256
    assert (
        resolve(FitConfig(ratio=125, codebook_size=256), stats_of(labels=10_000, train_labels=9000, **changes)).codebook_size == 256
    )


@pytest.mark.parametrize(
    ("given", "changes"),
    [({}, {"classes": 20, "images": 0, "fields": ()}), ({}, {"classes": 100, "labels": 50_000}), ({"latent": 64}, {})],
    ids=["20 classes", "100 classes", "a given latent"],
)  # fmt: skip
def test_codebooks_are_not_reduced_if_the_latent_is_at_its_maximum(given: Any, changes: dict[str, Any]) -> None:
    dump = stats_of(**{"labels": 5000, **changes}, train_labels=4500)
    config = resolve(FitConfig(ratio=4 if changes else 30, **given), dump)
    assert config.codebook_size == 256 and config.latent == given.get("latent", dump.classes - 1)


def test_given_slots_and_bits_are_kept_within_a_budget() -> None:
    few = stats_of(labels=10_000, train_labels=9000)
    for variable in (False, True):
        assert resolve(FitConfig(slots=16, ratio=60, variable_rate=variable), few).codebook_size == 256
    for bits in (3, 60, 64, 100):
        assert resolve(FitConfig(bits=bits, ratio=40), few).label_bits == bits
    assert resolve(FitConfig(bits=64, ratio=100), few).codebook_size == 16, "smaller codebooks use the same bits"
    assert resolve(FitConfig(bits=100, slots=16, ratio=60, variable_rate=True), few).rate == 100
    assert resolve(FitConfig(bits=5000, ratio=2, variable_rate=True), few).rate == 5000


def test_without_a_budget_codebooks_and_latent_grow_with_the_labels() -> None:
    resolved = [resolve(FitConfig(), stats_of(labels=seen, train_labels=seen)) for seen in (200, 2000, 8000, 80_000)]
    assert [(config.codebook_size, config.latent) for config in resolved] == [(16, 16), (256, 83), (256, 256), (256, 256)]


@pytest.mark.parametrize(("latent", "ratio", "classes"), [(99, 20, 100), (256, 60, 1000)])
def test_a_given_latent_is_kept_within_a_budget(latent: int, ratio: float, classes: int) -> None:
    dump = stats_of(labels=20_000, train_labels=18_000, classes=classes)
    config = resolve(FitConfig(latent=latent, ratio=ratio), dump)
    assert config.latent == latent
    assert file_bytes(config, dump.labels) <= 2 * dump.labels * classes / ratio


def test_few_bits_have_a_small_codebook_within_a_budget() -> None:
    assert resolve(FitConfig(bits=3, ratio=100), stats_of(images=0, fields=())).codebook_size == 8


@pytest.mark.parametrize("named", [{"slots": 0}, {"bits": 0}])
def test_zero_slots_without_a_prior_are_refused_within_a_budget(named: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the rate leaves no codes"):
        resolve(FitConfig(ratio=100, **named), stats_of(images=0, fields=()))


def test_a_budget_for_a_prior_alone_falls_back_to_codes_if_the_prior_is_useless(tmp_path: Path) -> None:
    np.save(tmp_path / "dump.npy", np.random.default_rng(0).normal(size=(10, 100, 400)).astype(np.float16))
    sample, _ = read_sample(open_labels(tmp_path / "dump.npy"))
    config, states = FitConfig(ratio=70, epochs=1), list[dict[str, Any]]()
    assert resolve(config, dataset_stats(sample)).slots == 0
    codec = fit_codec(sample, config, FitHooks(save=lambda state: states.append(copy.deepcopy(state))))
    assert codec.config.prior is None and codec.config.slots
    for state in states:
        again = fit_codec(sample, config, FitHooks(resumed=state))
        assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in codec.state_dict().items())
    with pytest.raises(UsageError, match="predicts these labels no better than their mean"):
        fit_codec(sample, FitConfig(ratio=70, epochs=1, slots=0), FitHooks())


def test_a_ratio_is_equivalent_to_its_budget_in_bytes() -> None:
    assert resolve(FitConfig(ratio=500), stats_of()) == resolve(FitConfig(bytes=320_000), stats_of())


def test_the_codec_grows_with_the_budget() -> None:
    sizes = [codec_bytes(resolve(FitConfig(bytes=size, slots=1), stats_of())) for size in range(150_000, 900_000, 50_000)]
    assert sizes == sorted(sizes)


def test_given_sizes_are_kept_within_a_budget() -> None:
    config = resolve(FitConfig(bytes=400_000, slots=3, weight_bits=5, image_width=10, hidden=33), stats_of())
    assert (config.slots, config.weight_bits) == (3, 5)
    assert config.prior is not None and (config.prior.image_width, config.prior.hidden) == (10, 33)
    assert resolve(FitConfig(bytes=400_000, latent=20), stats_of()).latent == 20
    assert resolve(FitConfig(bytes=400_000, bits=8), stats_of()).label_bits == 8
    assert resolve(FitConfig(bytes=400_000, prior=False), stats_of()).prior is None


def test_a_budget_too_small_is_refused_with_the_least_possible() -> None:
    with pytest.raises(UsageError, match=r"80000 labels of 1000 classes do not fit into 9000 bytes; the least is about \d+"):
        resolve(FitConfig(bytes=9000), stats_of())


@pytest.mark.parametrize("options", [{"codec": "topk"}, {"codec": "raw"}, {"code_width": 4}])
def test_a_budget_for_a_codec_without_sizes_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        FitConfig(ratio=100, **options)


@pytest.mark.parametrize("labels", [2, 50, 300])
@pytest.mark.parametrize("images", [0, 2])
def test_a_dump_smaller_than_a_header_is_refused_with_the_least_possible(labels: int, images: int) -> None:
    with pytest.raises(UsageError, match=r"labels of 10 classes do not fit into \d+ bytes; the least is about \d+"):
        resolve(FitConfig(ratio=3), stats_of(labels=labels, train_labels=labels, classes=10, images=images))


def test_a_budget_larger_than_useful_is_not_filled() -> None:
    config = resolve(FitConfig(bytes=1 << 40), stats_of(labels=100, train_labels=80, classes=10, images=0))
    assert file_bytes(config, 100) < 1 << 30


def test_two_budgets_are_refused() -> None:
    with pytest.raises(UsageError, match="are two budgets; give one"):
        FitConfig(bytes=1000, ratio=10)


@pytest.mark.parametrize(
    "options", [{"bits": 12}, {"bits": 12, "weight_bits": 3}, {"bits": 0}, {"prior": False, "bits": 6}], ids=str
)
def test_the_predicted_bytes_are_those_of_the_file(options: dict[str, Any], tmp_path: Path, logits: NDArray[np.float16]) -> None:
    """Except for the header, which is predicted with a margin."""
    labels = torch.from_numpy(logits).flatten(0, 1)
    image = np.tile(np.arange(logits.shape[1]), len(logits))
    context = Context(image=image)
    sample = LabelSample(
        train=labels[:-60], held_out=labels[-60:], train_context=context.rows(slice(0, -60)), held_out_context=context.rows(slice(-60, None)),
        domain="logits", dtype="F16",
    )  # fmt: skip
    config = FitConfig(codebook_size=8, epochs=1, **{"prior": True, **options})
    codec = fit_codec(sample, replace(config, codec="vqae"))
    assert codec_bytes(codec.config) == sum(t.numel() * t.element_size() for t in codec.decoder_tensors().values())
    path = tmp_path / "a.npy"
    np.save(path, logits)
    vqlabel.pack(path, tmp_path / "a.vql", codec=codec)
    size = account(VqlFile(tmp_path / "a.vql")).bytes
    without_header = file_bytes(codec.config, len(labels)) - file_bytes(codec.config, 0) + codec_bytes(codec.config)
    assert size["codec"] == codec_bytes(codec.config)
    assert abs(size["codes"] + size["codec"] - without_header) < 256
