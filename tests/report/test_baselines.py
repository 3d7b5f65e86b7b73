"""Each baseline against a closed form or a theorem, and the bits of an entropy coder against the entropy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vqlabel.codecs import LabelSample
from vqlabel.metrics.distortion import Distortion, as_logits, mixed_kl_divergence
from vqlabel.metrics.flat_tail import best_shift, flat_tail
from vqlabel.report.baselines import BASELINES, Baseline, TrainingLabels
from vqlabel.report.baselines.entropy import ESCAPE_BITS, Frequencies, bits_of_distinct
from vqlabel.report.baselines.pca_scalar import PcaScalar
from vqlabel.report.baselines.plain import Int4, Int8, Raw
from vqlabel.report.baselines.topk import STEP

FAISS = ("pq", "opq", "rq")
MIX = (1.0, 4.0, 20.0)


def draw(n: int, classes: int, *, rank: int = 8, seed: int = 0) -> Tensor:
    """[n, C] logits with falling variance along `rank` directionsand little noise; all seeds share the directions."""
    rng = np.random.default_rng(99)
    axes = rng.normal(size=(rank, classes)) * np.linspace(2, 0.5, rank)[:, None]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ axes + 0.1 * rng.normal(size=(n, classes))
    return torch.from_numpy(x.astype(np.float16)).float()


def sample_of(seen: Tensor, held: Tensor, domain: str = "logits", dtype: str = "F16") -> LabelSample:
    if domain == "probs":
        seen, held = (torch.softmax(x, 1).half().float() for x in (seen, held))
    return LabelSample(train=seen, held_out=held, train_context=None, held_out_context=None, domain=domain, dtype=dtype)


@pytest.fixture(scope="module")
def sample() -> LabelSample:
    return sample_of(draw(3000, 30), draw(500, 30, seed=1))


@pytest.fixture(scope="module")
def train(sample: LabelSample) -> TrainingLabels:
    return TrainingLabels(sample, MIX, seed=0)


def fit(name: str, train: TrainingLabels, bits: int) -> Baseline:
    if name in FAISS:
        pytest.importorskip("faiss", reason="the extra `baselines` is not installed")
    baseline = BASELINES[name].fit(train, bits)
    assert baseline is not None
    return baseline


def measure(baseline: Baseline, labels: Tensor, domain: str = "logits") -> tuple[float, dict[str, float]]:
    """Bits per label, and distortion."""
    codes, distortion = baseline.encode(labels), Distortion(domain=domain)
    decoded = baseline.decode(codes)
    distortion.add(labels, decoded if domain == "logits" else torch.softmax(decoded, 1))
    return baseline.bits(codes) / len(labels), distortion.figures()


# --- entropy ----------------------------------------------------------------------------------------------------------


def test_the_bits_of_a_known_distribution_are_its_entropy() -> None:
    share = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
    symbols = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([3, 5, 6, 9], (share * 80_000).astype(int))))[:, None]
    model = Frequencies(symbols)
    assert model.bits(symbols).mean().item() == pytest.approx(1.75, abs=2e-3)
    two = torch.cat([symbols, symbols % 2], 1)  # 3, 5 and 9 are odd: 7/8
    want = [1.75, -(7 / 8 * math.log2(7 / 8) + 1 / 8 * math.log2(1 / 8))]
    assert Frequencies(two).bits(two).mean(0).tolist() == pytest.approx(want, abs=2e-3)


def test_the_probabilities_of_a_table_and_its_escape_symbol_sum_to_one() -> None:
    model = Frequencies(torch.tensor([[4], [4], [7]]))
    shares = (-model.bits(torch.arange(4, 8)[:, None])).exp2().sum().item() + 2 ** -(
        model.bits(torch.tensor([[0]])).item() - ESCAPE_BITS
    )
    assert shares == pytest.approx(1)
    assert model.bits(torch.tensor([[5]])).item() == pytest.approx(math.log2((3 + 2.5) / 0.5))
    assert model.bytes == 5 * 2 + 8


def test_an_integer_outside_the_table_costs_the_escape_symbol_and_its_bits() -> None:
    model = Frequencies(torch.tensor([[0], [1]]))
    for symbol in (-1, 2, 10**6):
        assert model.bits(torch.tensor([[symbol]])).item() == pytest.approx(math.log2(3.5 / 0.5) + ESCAPE_BITS)


def test_distinct_ids_under_a_uniform_model_cost_the_log2_of_the_number_of_their_orders() -> None:
    ids = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i))[:5] for i in range(50)])
    flat = Frequencies(torch.arange(20).repeat(5000)[:, None], (0, 19))
    ordered = math.log2(math.factorial(20) / math.factorial(15))
    assert bits_of_distinct(ids, flat).sum(1).numpy() == pytest.approx(ordered, abs=1e-2)


# --- every logit stored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "dtype"), [("logits", "F16"), ("logits", "BF16"), ("probs", "F16")])
def test_raw_labels_are_lossless_and_zstd_adds_little_at_worst(domain: str, dtype: str) -> None:
    labels = draw(200, 30)
    labels = labels.bfloat16().float() if dtype == "BF16" else labels
    sample = sample_of(labels, labels, domain, dtype)
    baseline = Raw.fit(TrainingLabels(sample, MIX, 0), 8)
    assert torch.equal(baseline.decode(baseline.encode(sample.train)), as_logits(sample.train, domain))
    assert 100 < baseline.bits(baseline.encode(sample.train)) / 200 < 16 * 30 + 2
    constant = torch.ones(200, 30)
    assert baseline.bits(baseline.encode(constant)) / 200 < 5


@pytest.mark.parametrize("baseline", [Int8, Int4])
@pytest.mark.parametrize("scale", [1e-2, 1, 3000])
def test_a_quantized_logit_is_within_half_a_step(baseline: type[Int8] | type[Int4], scale: float, train: TrainingLabels) -> None:
    fitted, x = baseline.fit(train, 8), scale * draw(300, 31, seed=2)
    levels, low, step = fitted.encode(x)
    centred = as_logits(x, "logits")
    assert int(levels.max()) <= 2**baseline.width - 1
    error = (fitted.decode((levels, low, step)) - centred).abs()
    assert bool((error <= step * 0.5 * (1 + 1e-3)).all())
    reach = centred.amax(1) - centred.amin(1)
    coarse = reach / (2**baseline.width - 1)
    assert bool((step[:, 0] <= 1.01 * coarse).all())


def test_quantized_logits_cost_at_most_their_width_and_the_two_extremes(train: TrainingLabels) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).random((100, 31), np.float32))
    for baseline, width in ((Int8, 8), (Int4, 4)):
        fitted = baseline.fit(train, 8)
        bits = fitted.bits(fitted.encode(noise)) / 100
        assert 0.8 * width * 31 + 32 < bits < width * 32 + 32 + 2
    flat = fitted.bits(fitted.encode(torch.ones(100, 31))) / 100
    assert 32 < flat < 34
    assert float(fitted.encode(torch.ones(2, 31))[2].min()) > 0, "the step of a label whose logits are all equal is a divisor too"


# --- top-k ------------------------------------------------------------------------------------------------------------


def test_a_flat_tail_keeps_the_top_logits_and_gives_all_others_one_value() -> None:
    labels = flat_tail(torch.tensor([[2, 0]]), torch.tensor([[3.0, 1.0]]), 4, 0.5)
    assert labels.tolist() == [[1.0, -1.5, 3.0, -1.5]]
    assert flat_tail(torch.tensor([[0, 1]]), torch.tensor([[1.0, -1.0]]), 2, 0.0).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("temperature", [(1.0,), (20.0,), MIX])
def test_neighbouring_shifts_of_the_tail_have_a_higher_kl(temperature: tuple[float, ...]) -> None:
    x = as_logits(draw(400, 30), "logits")
    kept, ids = x.topk(3, 1)
    best = best_shift(x, ids, kept, temperature)
    losses = [mixed_kl_divergence(x, flat_tail(ids, kept, 30, best + d), temperature).mean().item() for d in (-0.1, 0.0, 0.1)]
    assert losses[1] == min(losses)


def test_a_label_with_a_flat_tail_is_reconstructed() -> None:
    x = torch.zeros(100, 30)
    x[torch.arange(100), torch.arange(100) % 30] = 6.0
    x[torch.arange(100), (torch.arange(100) + 7) % 30] = 4.0
    x = as_logits(x, "logits")
    baseline = BASELINES["topk"].fit(TrainingLabels(sample_of(x, x), MIX, 0), 48)
    assert baseline is not None
    assert baseline.setting == "k 2"
    assert (baseline.decode(baseline.encode(x)) - x).abs().max() < 0.01
    assert BASELINES["topk"].fit(TrainingLabels(sample_of(x, x), MIX, 0), 20) is None, "a logit and its class take 16 + 5 bits"


def test_top_k_takes_16_bits_and_an_id_per_class_and_keeps_at_most_all_classes(train: TrainingLabels, sample: LabelSample) -> None:
    assert measure(fit("topk", train, 47), sample.held_out)[0] == 2 * 21
    bits, figures = measure(fit("topk", train, 10**4), sample.held_out)
    assert bits == 30 * 21
    assert figures["kl_T1"] < 1e-4


def test_entropy_coded_top_k_keeps_its_classes_within_half_a_step_at_its_rate(train: TrainingLabels, sample: LabelSample) -> None:
    baseline = fit("topk-coded", train, 60)
    codes = baseline.encode(sample.held_out)
    kept, ids = as_logits(sample.held_out, "logits").topk(codes[0].shape[1], 1)
    assert torch.equal(codes[0], ids)
    assert (baseline.decode(codes).gather(1, ids) - kept).abs().max() <= STEP / 2 + 1e-5
    bits = measure(baseline, sample.held_out)[0]
    assert 50 < bits < 64
    plain = BASELINES["topk"].fit(train, 60)
    assert plain is not None
    assert codes[0].shape[1] > plain.encode(sample.held_out)[0].shape[1], "entropy coding keeps more classes at the same rate"


def test_a_hard_label_costs_the_entropy_of_the_largest_class() -> None:
    x = torch.zeros(4000, 50)
    first = torch.arange(4000) % 4
    x[torch.arange(4000), first] = 5.0
    baseline = BASELINES["hard"].fit(TrainingLabels(sample_of(x, x), (1.0,), 0), 8)
    assert baseline is not None
    bits, figures = measure(baseline, x)
    assert bits == pytest.approx(2, abs=0.03)
    assert figures["top1_agreement"] == 1
    assert figures["kl_T1"] < 1e-4, "one difference fits all of these labels"
    share = math.exp(5) / (math.exp(5) + 49)
    assert float(baseline.setting.removeprefix("smoothed by ")) == pytest.approx(1 - share, rel=0.01)


# --- linear codes -----------------------------------------------------------------------------------------------------


def test_at_a_high_rate_the_error_of_a_component_is_a_twelfth_of_the_squared_step(
    train: TrainingLabels, sample: LabelSample
) -> None:
    baseline = fit("pca-scalar", train, 150)
    assert isinstance(baseline, PcaScalar)
    x = as_logits(sample.held_out, "logits")
    error = ((baseline.decode(baseline.encode(sample.held_out)) - x) @ baseline.basis.T).square().mean().item()
    assert error == pytest.approx(baseline.step**2 / 12, rel=0.1)
    assert len(baseline.basis) == 29
    assert baseline.fixed_bytes > 2 * 30 * 30


def test_pca_meets_its_rate_and_gains_six_decibels_per_bit() -> None:
    """One component of unit variance: a bit more quarters the error (Gish and Pierce 1968: 1.53 dB above the bound)."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(20_000, 1)).astype(np.float32)) * torch.tensor([[1.0, -1.0]]) / math.sqrt(2)
    train = TrainingLabels(sample_of(x, x), MIX, 0)
    errors = {}
    for bits in (3, 4, 5):
        baseline = fit("pca-scalar", train, bits)
        rate, _ = measure(baseline, x)
        assert rate == pytest.approx(bits, abs=0.05)
        errors[bits] = (baseline.decode(baseline.encode(x)) - x).square().sum(1).mean().item()
        assert errors[bits] == pytest.approx(math.pi * math.e / 6 * 4.0**-bits, rel=0.12)
    assert errors[3] > 3.7 * errors[4] > 3.7**2 * errors[5]


def test_principal_components_are_orthonormal_and_sorted_by_variance(train: TrainingLabels) -> None:
    mean, basis = train.pca
    assert (basis @ basis.T - torch.eye(len(basis))).abs().max() < 2e-3
    variance = train.project(8).var(0)
    assert bool((variance[:-1] > variance[1:]).all())
    assert (mean - train.logits.mean(0)).abs().max() < 1e-3


def test_a_residual_quantizer_has_the_same_first_slot_whatever_the_number_of_slots(sample: LabelSample) -> None:
    pytest.importorskip("faiss", reason="the extra `baselines` is not installed")
    alone, with_more_slots = TrainingLabels(sample, MIX, 0), TrainingLabels(sample, MIX, 0, max_bits=18)
    expected, figures = (measure(fit("rq", train, 6), sample.held_out)[1] for train in (alone, with_more_slots))
    assert figures == expected


@pytest.mark.parametrize("name", FAISS)
def test_the_fixed_bytes_of_a_faiss_quantizer_are_mean_basis_and_vectors(
    name: str, train: TrainingLabels, sample: LabelSample
) -> None:
    baseline = fit(name, train, 24)  # 3000 labels allow 6 bits a slot
    d, vectors = {"rq": (29, 4 * 64 * 29)}.get(name, (28, 4 * 64 * 7))
    assert baseline.setting == f"4 slots of 6 bits, {d} components"
    assert baseline.fixed_bytes == 2 * (30 * (d + 1) + vectors)
    assert measure(baseline, sample.held_out)[0] == 24


# --- all baselines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, baseline in BASELINES.items() if baseline.has_rate])
def test_more_bits_never_hurt(name: str, train: TrainingLabels, sample: LabelSample) -> None:
    rates = (6, 12, 24) if name in FAISS else (24, 48, 96)
    measured = [measure(fit(name, train, bits), sample.held_out) for bits in rates]
    for figure in ("kl_T1", "kl_T4", "kl_T20", "relative_mse"):
        values = [figures[figure] for _, figures in measured]
        assert values == sorted(values, reverse=True), figure
    assert [bits for bits, _ in measured] == sorted(bits for bits, _ in measured)
    for (bits, _), rate in zip(measured, rates, strict=True):
        assert bits <= 1.08 * rate + 1


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("domain", ["logits", "probs"])
@pytest.mark.parametrize(("n", "classes"), [(2, 2), (3, 3), (40, 2), (7, 100)])
def test_few_labels_of_few_classes_can_be_coded(name: str, domain: str, n: int, classes: int) -> None:
    sample = sample_of(draw(n, classes), draw(3, classes, seed=1), domain)
    baseline = fit(name, TrainingLabels(sample, MIX, 0), 64)
    bits, figures = measure(baseline, sample.held_out, domain)
    assert bits >= 0
    assert all(math.isfinite(value) for value in figures.values())
    codes = baseline.encode(sample.held_out)
    assert baseline.decode(codes).shape == (3, classes)


@pytest.mark.parametrize("name", BASELINES)
def test_labels_that_are_all_equal_can_be_coded(name: str) -> None:
    x = torch.zeros(100, 5)
    baseline = fit(name, TrainingLabels(sample_of(x, x), MIX, 0), 64)
    assert measure(baseline, x)[1]["kl_T1"] < 1e-3


def test_principal_components_depend_on_the_seed_and_not_on_the_state_of_torch_s_generator() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32))
    bases = []
    for seed in (3, 3, 4):
        torch.rand(1)
        bases.append(TrainingLabels(sample_of(x, x), MIX, seed).pca[1])
    first, second, other = bases
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_gives_the_same_figures(name: str, sample: LabelSample) -> None:
    bits = 12 if name in FAISS else 24
    first, second = (measure(fit(name, TrainingLabels(sample, MIX, 3), bits), sample.held_out) for _ in range(2))
    assert first == second
