"""Each peer against a closed form or a theorem, and the bits of an entropy coder against entropy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vqlabel.codecs import Distortion, LabelSample
from vqlabel.metrics.distortion import as_logits, mixed_kl_divergence
from vqlabel.report.baselines import PEERS, Peer, Seen
from vqlabel.report.baselines.entropy import ESCAPE_BITS, Frequencies, bits_of_sets
from vqlabel.report.baselines.exact_top import ROUNDING, best_shift, flat_tail
from vqlabel.report.baselines.plain import Int4, Int8, Raw
from vqlabel.report.baselines.transform import PcaScalar

FAISS = ("pq", "opq", "rq")
MIX = (1.0, 4.0, 20.0)


def draw(n: int, classes: int, *, rank: int = 8, seed: int = 0) -> Tensor:
    """[n, C] logits of falling variance along `rank` directions, and a little noise on all; the same directions for every seed."""
    rng = np.random.default_rng(99)
    axes = rng.normal(size=(rank, classes)) * np.linspace(2, 0.5, rank)[:, None]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, rank)) @ axes + 0.1 * rng.normal(size=(n, classes))
    return torch.from_numpy(x.astype(np.float16)).float()


def sample_of(seen: Tensor, held: Tensor, domain: str = "logits", dtype: str = "F16") -> LabelSample:
    if domain == "probs":
        seen, held = (torch.softmax(x, 1).half().float() for x in (seen, held))
    return LabelSample(seen=seen, held=held, seen_context=None, held_context=None, domain=domain, dtype=dtype)


@pytest.fixture(scope="module")
def sample() -> LabelSample:
    return sample_of(draw(3000, 30), draw(500, 30, seed=1))


@pytest.fixture(scope="module")
def seen(sample: LabelSample) -> Seen:
    return Seen(sample, MIX, seed=0)


def fit(name: str, seen: Seen, bits: int) -> Peer:
    if name in FAISS:
        pytest.importorskip("faiss", reason="the extra `baselines` is not installed")
    peer = PEERS[name].fit(seen, bits)
    assert peer is not None
    return peer


def through(peer: Peer, labels: Tensor, domain: str = "logits") -> tuple[float, dict[str, float]]:
    """Bits per label, and distortion."""
    codes, figures = peer.encode(labels), Distortion(domain=domain)
    decoded = peer.decode(codes)
    figures.add(labels, decoded if domain == "logits" else torch.softmax(decoded, 1))
    return peer.bits(codes) / len(labels), figures.figures()


# --- entropy ------------------------------------------------------------------------------------------------------------------------


def test_bits_of_a_known_distribution_are_its_entropy() -> None:
    share = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
    symbols = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat([3, 5, 6, 9], (share * 80_000).astype(int))))[:, None]
    model = Frequencies(symbols)
    assert model.bits(symbols).mean().item() == pytest.approx(1.75, abs=2e-3)
    two = torch.cat([symbols, symbols % 2], 1)  # 3, 5 and 9 are odd: 7/8
    want = [1.75, -(7 / 8 * math.log2(7 / 8) + 1 / 8 * math.log2(1 / 8))]
    assert Frequencies(two).bits(two).mean(0).tolist() == pytest.approx(want, abs=2e-3)


def test_frequencies_of_all_that_a_table_lists_and_the_escape_add_up_to_one() -> None:
    model = Frequencies(torch.tensor([[4], [4], [7]]))
    shares = (-model.bits(torch.arange(4, 8)[:, None])).exp2().sum().item() + 2 ** -(
        model.bits(torch.tensor([[0]])).item() - ESCAPE_BITS
    )
    assert shares == pytest.approx(1)
    assert model.bits(torch.tensor([[5]])).item() == pytest.approx(math.log2((3 + 2.5) / 0.5))
    assert model.bytes == 5 * 2 + 8


def test_a_number_outside_the_table_is_escaped_and_costs_its_bits() -> None:
    model = Frequencies(torch.tensor([[0], [1]]))
    for symbol in (-1, 2, 10**6):
        assert model.bits(torch.tensor([[symbol]])).item() == pytest.approx(math.log2(3.5 / 0.5) + ESCAPE_BITS)


def test_ids_that_come_once_each_cost_log2_of_their_orders_under_a_flat_model() -> None:
    ids = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i))[:5] for i in range(50)])
    flat = Frequencies(torch.arange(20).repeat(5000)[:, None], (0, 19))
    ordered = math.log2(math.factorial(20) / math.factorial(15))
    assert bits_of_sets(ids, flat).sum(1).numpy() == pytest.approx(ordered, abs=1e-2)


# --- labels as they are, or nearly --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "dtype"), [("logits", "F16"), ("logits", "BF16"), ("probs", "F16")])
def test_raw_labels_come_back_exactly_and_zstd_never_adds_much(domain: str, dtype: str) -> None:
    labels = draw(200, 30)
    labels = labels.bfloat16().float() if dtype == "BF16" else labels
    sample = sample_of(labels, labels, domain, dtype)
    peer = Raw.fit(Seen(sample, MIX, 0), 8)
    assert torch.equal(peer.decode(peer.encode(sample.seen)), as_logits(sample.seen, domain))
    assert 100 < peer.bits(peer.encode(sample.seen)) / 200 < 16 * 30 + 2
    constant = torch.ones(200, 30)
    assert peer.bits(peer.encode(constant)) / 200 < 5


@pytest.mark.parametrize("peer", [Int8, Int4])
@pytest.mark.parametrize("scale", [1e-2, 1, 3000])
def test_an_integer_is_within_half_a_step_of_its_logit(peer: type[Int8] | type[Int4], scale: float, seen: Seen) -> None:
    fitted, x = peer.fit(seen, 8), scale * draw(300, 31, seed=2)
    levels, low, step = fitted.encode(x)
    centred = as_logits(x, "logits")
    assert int(levels.max()) <= 2**peer.width - 1
    error = (fitted.decode((levels, low, step)) - centred).abs()
    assert bool((error <= step * 0.5 * (1 + 1e-3)).all())
    reach = centred.amax(1) - centred.amin(1)
    coarse = reach / (2**peer.width - 1)
    assert bool((step[:, 0] <= 1.01 * coarse).all())


def test_levels_of_integers_cost_no_more_than_their_width_and_the_ends(seen: Seen) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).random((100, 31), np.float32))
    for peer, width in ((Int8, 8), (Int4, 4)):
        fitted = peer.fit(seen, 8)
        bits = fitted.bits(fitted.encode(noise)) / 100
        assert 0.8 * width * 31 + 32 < bits < width * 32 + 32 + 2
    flat = fitted.bits(fitted.encode(torch.ones(100, 31))) / 100
    assert 32 < flat < 34
    assert float(fitted.encode(torch.ones(2, 31))[2].min()) > 0, "labels that are all alike divide by their step, too"


# --- head and tail ------------------------------------------------------------------------------------------------------------------


def test_a_flat_tail_has_the_kept_logits_and_shares_the_rest() -> None:
    found = flat_tail(torch.tensor([[2, 0]]), torch.tensor([[3.0, 1.0]]), 4, 0.5)
    assert found.tolist() == [[1.0, -1.5, 3.0, -1.5]]
    assert flat_tail(torch.tensor([[0, 1]]), torch.tensor([[1.0, -1.0]]), 2, 0.0).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("temperature", [(1.0,), (20.0,), MIX])
def test_no_other_shift_of_the_tail_has_less_kl(temperature: tuple[float, ...]) -> None:
    x = as_logits(draw(400, 30), "logits")
    kept, ids = x.topk(3, 1)
    best = best_shift(x, ids, kept, temperature)
    losses = [mixed_kl_divergence(x, flat_tail(ids, kept, 30, best + d), temperature).mean().item() for d in (-0.1, 0.0, 0.1)]
    assert losses[1] == min(losses)


def test_a_tail_that_is_flat_comes_back_exactly() -> None:
    x = torch.zeros(100, 30)
    x[torch.arange(100), torch.arange(100) % 30] = 6.0
    x[torch.arange(100), (torch.arange(100) + 7) % 30] = 4.0
    x = as_logits(x, "logits")
    peer = PEERS["topk"].fit(Seen(sample_of(x, x), MIX, 0), 48)
    assert peer is not None
    assert peer.setting == "k 2"
    assert (peer.decode(peer.encode(x)) - x).abs().max() < 0.01
    assert PEERS["topk"].fit(Seen(sample_of(x, x), MIX, 0), 20) is None, "a class and its logit take 16 + 5 bits"


def test_top_k_takes_16_bits_and_an_id_for_each_class_and_never_more_than_all(seen: Seen, sample: LabelSample) -> None:
    assert through(fit("topk", seen, 47), sample.held)[0] == 2 * 21
    bits, figures = through(fit("topk", seen, 10**4), sample.held)
    assert bits == 30 * 21
    assert figures["kl_T1"] < 1e-4


def test_coded_top_k_keeps_what_it_paid_for(seen: Seen, sample: LabelSample) -> None:
    peer = fit("topk-coded", seen, 60)
    codes = peer.encode(sample.held)
    kept, ids = as_logits(sample.held, "logits").topk(codes[0].shape[1], 1)
    assert torch.equal(codes[0], ids)
    assert (peer.decode(codes).gather(1, ids) - kept).abs().max() <= ROUNDING / 2 + 1e-5
    bits = through(peer, sample.held)[0]
    assert 50 < bits < 64
    plain = PEERS["topk"].fit(seen, 60)
    assert plain is not None
    assert codes[0].shape[1] > plain.encode(sample.held)[0].shape[1], "the same bits keep more classes"


def test_classes_that_are_never_first_make_the_hard_label_cheaper() -> None:
    x = torch.zeros(4000, 50)
    first = torch.arange(4000) % 4
    x[torch.arange(4000), first] = 5.0
    peer = PEERS["hard"].fit(Seen(sample_of(x, x), (1.0,), 0), 8)
    assert peer is not None
    bits, figures = through(peer, x)
    assert bits == pytest.approx(2, abs=0.03)
    assert figures["top1_agreement"] == 1
    assert figures["kl_T1"] < 1e-4, "one step fits all labels here"
    share = math.exp(5) / (math.exp(5) + 49)
    assert float(peer.setting.removeprefix("smoothed by ")) == pytest.approx(1 - share, rel=0.01)


# --- linear codes -------------------------------------------------------------------------------------------------------------------


def test_rounding_components_at_a_high_rate_errs_by_a_twelfth_of_the_squared_step(seen: Seen, sample: LabelSample) -> None:
    peer = fit("pca-scalar", seen, 150)
    assert isinstance(peer, PcaScalar)
    x = as_logits(sample.held, "logits")
    error = ((peer.decode(peer.encode(sample.held)) - x) @ peer.basis.T).square().mean().item()
    assert error == pytest.approx(peer.step**2 / 12, rel=0.1)
    assert len(peer.basis) == 29
    assert peer.fixed_bytes > 2 * 30 * 30


def test_a_rate_is_met_and_six_decibels_a_bit_follow() -> None:
    """One component of unit variance: an extra bit quarters the error (Gish and Pierce 1968: 1.53 dB above the bound)."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(20_000, 1)).astype(np.float32)) * torch.tensor([[1.0, -1.0]]) / math.sqrt(2)
    seen = Seen(sample_of(x, x), MIX, 0)
    errors = {}
    for bits in (3, 4, 5):
        peer = fit("pca-scalar", seen, bits)
        rate, _ = through(peer, x)
        assert rate == pytest.approx(bits, abs=0.05)
        errors[bits] = (peer.decode(peer.encode(x)) - x).square().sum(1).mean().item()
        assert errors[bits] == pytest.approx(math.pi * math.e / 6 * 4.0**-bits, rel=0.12)
    assert errors[3] > 3.7 * errors[4] > 3.7**2 * errors[5]


def test_principal_components_are_orthonormal_and_fall(seen: Seen) -> None:
    mean, basis = seen.pca
    assert (basis @ basis.T - torch.eye(len(basis))).abs().max() < 2e-3
    variance = seen.project(8).var(0)
    assert bool((variance[:-1] > variance[1:]).all())
    assert (mean - seen.logits.mean(0)).abs().max() < 1e-3


def test_a_first_slot_of_a_residual_quantizer_is_the_same_however_many_follow(sample: LabelSample) -> None:
    pytest.importorskip("faiss", reason="the extra `baselines` is not installed")
    alone, ahead = Seen(sample, MIX, 0), Seen(sample, MIX, 0, most_bits=18)
    want, found = (through(fit("rq", seen, 6), sample.held)[1] for seen in (alone, ahead))
    assert found == want


@pytest.mark.parametrize("name", FAISS)
def test_fixed_bytes_of_quantizers_are_mean_basis_and_vectors(name: str, seen: Seen, sample: LabelSample) -> None:
    peer = fit(name, seen, 24)  # 3000 labels allow 6 bits a slot
    d, vectors = {"rq": (29, 4 * 64 * 29)}.get(name, (28, 4 * 64 * 7))
    assert peer.setting == f"4 slots of 6 bits, {d} components"
    assert peer.fixed_bytes == 2 * (30 * (d + 1) + vectors)
    assert through(peer, sample.held)[0] == 24


# --- all ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.at_rates])
def test_more_bits_never_hurt(name: str, seen: Seen, sample: LabelSample) -> None:
    rates = (6, 12, 24) if name in FAISS else (24, 48, 96)
    found = [through(fit(name, seen, bits), sample.held) for bits in rates]
    for figure in ("kl_T1", "kl_T4", "kl_T20", "relative_mse"):
        values = [figures[figure] for _, figures in found]
        assert values == sorted(values, reverse=True), figure
    assert [bits for bits, _ in found] == sorted(bits for bits, _ in found)
    for (bits, _), asked in zip(found, rates, strict=True):
        assert bits <= 1.08 * asked + 1


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("domain", ["logits", "probs"])
@pytest.mark.parametrize(("n", "classes"), [(2, 2), (3, 3), (40, 2), (7, 100)])
def test_a_handful_of_labels_of_few_classes_will_do(name: str, domain: str, n: int, classes: int) -> None:
    sample = sample_of(draw(n, classes), draw(3, classes, seed=1), domain)
    peer = fit(name, Seen(sample, MIX, 0), 64)
    bits, figures = through(peer, sample.held, domain)
    assert bits >= 0
    assert all(math.isfinite(value) for value in figures.values())
    codes = peer.encode(sample.held)
    assert peer.decode(codes).shape == (3, classes)


@pytest.mark.parametrize("name", PEERS)
def test_labels_that_are_all_alike_are_no_trouble(name: str) -> None:
    x = torch.zeros(100, 5)
    peer = fit(name, Seen(sample_of(x, x), MIX, 0), 64)
    assert through(peer, x)[1]["kl_T1"] < 1e-3


def test_the_same_seed_gives_the_same_components_whatever_was_drawn_before() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32))
    found = []
    for seed in (3, 3, 4):
        torch.rand(1)
        found.append(Seen(sample_of(x, x), MIX, seed).pca[1])
    first, second, other = found
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", PEERS)
def test_the_same_seed_gives_the_same_figures(name: str, sample: LabelSample) -> None:
    bits = 12 if name in FAISS else 24
    first, second = (through(fit(name, Seen(sample, MIX, 3), bits), sample.held) for _ in range(2))
    assert first == second
