"""Each peer of language models' labels on 8 tokens, against closed forms."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.errors import UsageError
from vqlabel.report.text.measure import PeerLabels, measure_peers
from vqlabel.report.text.peers import DistillKit, Fp8Hidden, RandomSampling, Teacher, TeacherRows, TextPeer, TopK, text_peers
from vqlabel.report.text.peers.base import id_bits
from vqlabel.report.text.peers.tails import MIN_TAIL, with_tail

V = 8
PROBS = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 64, 1 / 64, 1 / 64, 1 / 64]  # their logarithms are exact in no type


def rows_of(probs: list[list[float]]) -> TeacherRows:
    return TeacherRows(logits=torch.tensor(probs).log())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recode(peer: TextPeer, rows: TeacherRows, seed: int = 0) -> Tensor:
    return peer.decode(peer.encode(rows, generator(seed)))


def bits(peer: TextPeer, rows: TeacherRows) -> list[float]:
    values: list[float] = peer.bits(peer.encode(rows, generator())).tolist()
    return values


def hidden_labels(n: int = 40, vocabulary: int = V, d: int = 4, seed: int = 0) -> HiddenLabels:
    draw = generator(seed)
    head = OutputHead(weight=torch.randn(vocabulary, d, generator=draw))
    return HiddenLabels(hidden=torch.randn(n, d, generator=draw).half(), head=head)


# --- top-k ------------------------------------------------------------------------------------------------------------


def test_top_k_with_a_uniform_tail_shares_what_is_left() -> None:
    shuffled = [PROBS[i] for i in (4, 1, 0, 5, 2, 6, 3, 7)]
    decoded = recode(TopK(vocabulary=V, k=2), rows_of([shuffled]))[0].tolist()
    tail = (1 - 3 / 4) / 6
    assert decoded == pytest.approx([tail, 1 / 4, 1 / 2, tail, tail, tail, tail, tail], abs=5e-4)  # fp16 log-probabilities


def test_top_k_with_a_zero_tail_renormalises() -> None:
    decoded = recode(TopK(vocabulary=V, k=2, tail="zero"), rows_of([PROBS]))[0].tolist()
    assert decoded == pytest.approx([2 / 3, 1 / 3, 0, 0, 0, 0, 0, 0], abs=5e-4)
    assert decoded[2:] == [0] * 6


def test_top_k_rounds_log_probabilities_to_fp16() -> None:
    ids, values = TopK(vocabulary=V, k=3).encode(rows_of([PROBS]), generator())
    assert ids.tolist() == [[0, 1, 2]]
    assert values.tolist() == [torch.tensor(PROBS[:3]).log().half().tolist()]


def test_top_k_of_the_whole_vocabulary_has_no_tail() -> None:
    for tail in ("uniform", "zero"):
        assert recode(TopK(vocabulary=V, k=V, tail=tail), rows_of([PROBS]))[0].tolist() == pytest.approx(PROBS, abs=5e-4)


def test_values_that_sum_to_more_than_one_leave_the_smallest_tail() -> None:
    decoded = with_tail(torch.tensor([[3, 1]]), torch.tensor([[0.9, 0.3]]).log(), V, "uniform")[0]
    total = 1.2 + 6 * MIN_TAIL
    want = [MIN_TAIL, 0.3, MIN_TAIL, 0.9, *[MIN_TAIL] * 4]
    assert decoded.tolist() == pytest.approx([value / total for value in want], rel=1e-5)


@pytest.mark.parametrize(("vocabulary", "of_id"), [(2, 1), (8, 3), (9, 4), (16_384, 14), (16_385, 15), (262_144, 18)])
def test_an_id_takes_the_logarithm_of_the_vocabulary_rounded_up(vocabulary: int, of_id: int) -> None:
    assert id_bits(vocabulary) == of_id


def test_bits_of_top_k_are_those_of_ids_and_fp16_values() -> None:
    assert bits(TopK(vocabulary=V, k=3), rows_of([PROBS] * 2)) == [3 * (3 + 16)] * 2


# --- DistillKit -------------------------------------------------------------------------------------------------------


def curved(values: list[float]) -> TeacherRows:
    """A label of 24 tokens with these largest log-probabilities by rank, on tokens 23, 22, ..."""
    rest = math.log((1 - sum(math.exp(value) for value in values)) / (24 - len(values)))
    return TeacherRows(logits=torch.tensor([[*[rest] * (24 - len(values)), *reversed(values)]]))


@pytest.mark.parametrize(
    ("terms", "curve"),
    [((0, 1), lambda rank: -2.0 - 0.25 * rank), ((0, 1, "sqrt"), lambda rank: -2.0 - 0.125 * rank - 0.5 * math.sqrt(rank))],
)
def test_log_probabilities_on_the_curve_are_reproduced(terms: tuple[int | str, ...], curve: Any) -> None:
    values = [-1.0, *[curve(rank) for rank in range(4)]]  # -1 is exact in bf16; the curve counts ranks after it
    peer = DistillKit(vocabulary=24, k=5, exact=1, terms=terms)
    rows = curved(values)
    ids, exact, coefficients = peer.encode(rows, generator())
    assert (ids.tolist(), exact.tolist()) == ([[23, 22, 21, 20, 19]], [[-1.0]])
    want = [-2.0, -0.25] if terms == (0, 1) else [-2.0, -0.125, -0.5]
    assert coefficients.tolist()[0] == pytest.approx(want, abs=1e-5)
    assert torch.allclose(peer.decode((ids, exact, coefficients)), rows.probs, atol=1e-6)


def test_log_probabilities_off_the_curve_are_fitted_by_least_squares() -> None:
    values = [-1.0, -1.5, -2.5, -3.0]
    peer = DistillKit(vocabulary=24, k=4, exact=1, terms=(0,), tail="zero")
    _, _, coefficients = peer.encode(curved(values), generator())
    assert coefficients.item() == pytest.approx(-7 / 3)
    weights = [math.exp(value) for value in (-1.0, -7 / 3, -7 / 3, -7 / 3)]
    decoded = recode(peer, curved(values))[0].tolist()
    assert decoded == pytest.approx([*[0] * 20, *[w / sum(weights) for w in reversed(weights)]], rel=1e-5)


def test_exact_log_probabilities_are_rounded_to_bf16() -> None:
    _, exact, _ = DistillKit(vocabulary=V, k=4, exact=2, terms=(0,)).encode(rows_of([PROBS]), generator())
    assert exact.tolist() == [torch.tensor(PROBS[:2]).log().bfloat16().tolist()]


def test_the_recommended_terms_are_fitted_in_float64() -> None:
    """In float32, as DistillKit computes, rounding errors of the largest singular value replace the smallest ones."""
    setting: dict[str, Any] = {"vocabulary": 200, "k": 128, "exact": 16, "terms": (0, 1, 2, 3, 4, "sqrt")}
    rank = torch.arange(200.0)
    rows = TeacherRows(logits=-(0.8 * rank.clamp_min(1).log() + 0.01 * rank)[None])
    errors = {}
    for precision in (torch.float64, torch.float32):
        peer = DistillKit(precision=precision, **setting)
        ids, _, coefficients = peer.encode(rows, generator())
        curve = coefficients.double() @ peer.curve.T
        errors[precision] = (curve - rows.log_probs.gather(1, ids.long())[:, 16:]).abs().max().item()
    assert errors[torch.float64] < 0.02
    assert errors[torch.float32] > 10 * errors[torch.float64]


def test_bits_of_distillkit_are_those_of_its_documentation() -> None:
    peers = text_peers(16_384)
    rows = TeacherRows(logits=torch.zeros(1, 16_384))
    assert bits(peers["distillkit-budget"], rows) == [14 * 50 + 16 * 1 + 32 * 3] == [812]
    assert bits(peers["distillkit-recommended-zero"], rows) == [14 * 128 + 16 * 16 + 32 * 6] == [2240]


# --- random sampling --------------------------------------------------------------------------------------------------


def test_random_sampling_is_unbiased() -> None:
    probs = torch.tensor(PROBS)
    decoded = recode(RandomSampling(vocabulary=V, draws=50), rows_of([PROBS] * 4000))
    deviation = (probs * (1 - probs) / 50 / 4000).sqrt()  # of the mean over labels
    assert ((decoded.mean(0) - probs).abs() < 4 * deviation).all()
    assert decoded.var(0).tolist() == pytest.approx((probs * (1 - probs) / 50).tolist(), rel=0.15)


def test_random_sampling_decodes_to_shares_of_draws() -> None:
    peer = RandomSampling(vocabulary=V, draws=4)
    codes = (torch.tensor([[0, 2, 2, 5], [7, 7, 7, 7]]),)
    assert peer.decode(codes).tolist() == [[0.25, 0, 0.5, 0, 0, 0.25, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]]
    assert peer.bits(codes).tolist() == [3 * 24, 24]


def test_entropy_bits_are_those_of_a_multiset_of_draws() -> None:
    peer = RandomSampling(vocabulary=V, draws=4)
    codes = (torch.tensor([[0, 2, 2, 5], [7, 7, 7, 7]]),)
    log_prior = torch.tensor([PROBS] * 2).log()
    want = [1 + 3 + 3 + 6 - math.log2(math.factorial(4) / 2), 4 * 6.0]
    assert peer.entropy_bits(codes, log_prior).tolist() == pytest.approx(want, abs=1e-5)


def test_probabilities_of_all_multisets_sum_to_one() -> None:
    prior = torch.tensor([0.2, 0.5, 0.3])
    multisets = torch.tensor(list(itertools.combinations_with_replacement(range(3), 4)))
    peer = RandomSampling(vocabulary=3, draws=4)
    coded = peer.entropy_bits((multisets,), prior.log().expand(len(multisets), 3))
    assert (-coded).exp2().sum().item() == pytest.approx(1, abs=1e-6)


def test_draws_of_one_seed_are_the_same() -> None:
    peer, rows = RandomSampling(vocabulary=V, draws=16), rows_of([PROBS] * 20)
    (ids,) = peer.encode(rows, generator(1))
    assert torch.equal(ids, ids.sort(1).values)  # runs of equal ids are counted
    assert torch.equal(recode(peer, rows, 1), recode(peer, rows, 1))
    assert not torch.equal(recode(peer, rows, 1), recode(peer, rows, 2))


# --- hidden states in fp8, and the teacher ----------------------------------------------------------------------------


def test_fp8_keeps_numbers_of_four_significant_bits_exactly() -> None:
    labels = hidden_labels()
    hidden = torch.tensor([[448.0, -1.5, 0.0625, 13.0], [0.0, 0.0, 0.0, 0.0], [7.0, -3.5, 0.4375, 0.0]])
    rows = TeacherRows.of(HiddenLabels(hidden=hidden, head=labels.head))
    peer = Fp8Hidden(head=labels.head)
    _, scale = peer.encode(rows, generator())
    assert scale[:, 0].tolist()[::2] == [1.0, 7 / 448]
    assert torch.allclose(recode(peer, rows), rows.probs, atol=1e-6)


def test_fp8_rounds_a_number_by_at_most_a_sixteenth() -> None:
    labels = hidden_labels(200)
    numbers, scale = Fp8Hidden(head=labels.head).encode(TeacherRows.of(labels), generator())
    hidden, decoded = labels.hidden.float(), numbers.view(torch.float8_e4m3fn).float() * scale.float()
    smallest = 2.0**-9 * scale.float()  # subnormal step
    assert ((decoded - hidden).abs() <= torch.maximum(hidden.abs() / 16, smallest / 2) * 1.001).all()
    assert not torch.equal(decoded, hidden)


def test_bits_of_dense_peers() -> None:
    labels = hidden_labels(3)
    rows = TeacherRows.of(labels)
    assert bits(Fp8Hidden(head=labels.head), rows) == [8 * 4 + 16] * 3
    assert bits(Teacher(), rows) == [16 * V] * 3


def test_fp8_needs_hidden_states() -> None:
    with pytest.raises(
        UsageError, match="fp8 hidden states need a dump of hidden states; this one has logits: leave out this peer"
    ):
        Fp8Hidden(head=hidden_labels().head).encode(rows_of([PROBS]), generator())


def test_the_teacher_rounds_logits_to_fp16() -> None:
    logits = torch.tensor([[0.1, 1e6, *[0.0] * 6]])
    (codes,) = Teacher().encode(TeacherRows(logits=logits), generator())
    assert codes[0, :2].tolist() == [torch.tensor(0.1).half().item(), 65504]
    assert torch.allclose(recode(Teacher(), rows_of([PROBS])), torch.tensor(PROBS), atol=1e-3)


# --- all --------------------------------------------------------------------------------------------------------------


def test_names_of_peers() -> None:
    peers = text_peers(16_384, hidden_labels().head)
    topk = [f"top-{k}" for k in (16, 50, 128, 256)]
    kits = ["distillkit-budget", "distillkit-recommended", "distillkit-recommended-float32"]
    both = [name + tail for name in topk + kits for tail in ("", "-zero")]
    assert set(peers) == {*both, "sampling-8", "sampling-16", "sampling-50", "fp8-hidden", "teacher"}
    assert len({peer.title for peer in peers.values()}) == len(peers)
    assert set(text_peers(49)) == {"top-16", "top-16-zero", "sampling-8", "sampling-16", "sampling-50", "teacher"}


@pytest.mark.parametrize("name", text_peers(300, hidden_labels().head))
def test_every_peer_decodes_to_distributions(name: str) -> None:
    labels = hidden_labels(30, vocabulary=300)
    peer = text_peers(300, labels.head)[name]
    codes = peer.encode(TeacherRows.of(labels), generator())
    decoded = peer.decode(codes)
    assert decoded.shape == (30, 300) and decoded.dtype == torch.float32
    assert (decoded >= 0).all() and torch.allclose(decoded.sum(1), torch.ones(30), atol=1e-5)
    assert peer.bits(codes).shape == (30,)
    assert torch.allclose(peer.decode(tuple(tensor[7:9] for tensor in codes)), decoded[7:9], atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TopK(vocabulary=V, k=9), r"k is 9; it must be 1\.\.8, the vocabulary"),
        (lambda: TopK(vocabulary=V, k=2, tail="fat"), "tail is 'fat'; it must be one of uniform, zero"),
        (lambda: DistillKit(vocabulary=V, k=9, exact=1, terms=(0,)), r"k is 9; it must be 2\.\.8, the vocabulary"),
        (lambda: DistillKit(vocabulary=V, k=4, exact=4, terms=(0,)), r"exact is 4; it must be 0\.\.3"),
        (lambda: DistillKit(vocabulary=V, k=4, exact=1, terms=("exp",)), 'terms is .* it must be powers, from 0 up, and "sqrt"'),
        (lambda: DistillKit(vocabulary=V, k=4, exact=1, terms=()), 'terms is .* it must be powers, from 0 up, and "sqrt"'),
        (lambda: DistillKit(vocabulary=V, k=4, exact=1, terms=(0,), tail="fat"), "tail is 'fat'; it must be one of uniform, zero"),
        (
            lambda: DistillKit(vocabulary=V, k=4, exact=1, terms=(0,), precision=torch.float16),
            r"precision is torch.float16; it must be torch.float32 or torch.float64",
        ),
        (lambda: RandomSampling(vocabulary=V, draws=128), r"draws is 128; it must be 1\.\.127"),
    ],
)
def test_settings_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


# --- measuring --------------------------------------------------------------------------------------------------------


def test_measured_figures_are_those_of_all_labels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = hidden_labels(40)
    peers: dict[str, TextPeer] = {"top": TopK(vocabulary=V, k=2), "zero": TopK(vocabulary=V, k=2, tail="zero")}
    monkeypatch.setattr("vqlabel.report.text.measure.chunk_rows", lambda vocabulary: 16)
    steps: list[tuple[int, int]] = []
    measured = measure_peers(peers, labels, progress=lambda _, done, total, __: steps.append((done, total)))
    assert steps == [(16, 40), (32, 40), (40, 40)]
    p, q = labels.probs().double(), recode(peers["top"], TeacherRows.of(labels)).double()
    assert measured["top"]["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    assert measured["top"]["squared_error"] == pytest.approx((p - q).square().sum(1).mean().item(), rel=1e-5)
    assert (measured["top"]["title"], measured["top"]["bits"], measured["top"]["entropy_bits"]) == (
        "top-2 fp16, uniform tail", 38, None,
    )  # fmt: skip
    assert measured["zero"]["kl"] is None
    assert measured["zero"]["kl_stored"] == pytest.approx(0, abs=1e-6)  # only fp16's rounding
    assert measured["zero"]["mass_stored"] == pytest.approx(p.topk(2, 1).values.sum(1).mean().item(), rel=1e-5)


def test_a_prior_gives_entropy_bits_to_random_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = hidden_labels(40)
    peers: dict[str, TextPeer] = {"top": TopK(vocabulary=V, k=2), "sampling": RandomSampling(vocabulary=V, draws=8)}
    monkeypatch.setattr("vqlabel.report.text.measure.chunk_rows", lambda vocabulary: 16)
    measured = measure_peers(peers, labels, log_prior=lambda rows: labels.logits(rows).log_softmax(1), seed=3)
    assert measured["top"]["entropy_bits"] is None
    draws = PeerLabels(peers["sampling"], labels, seed=3).codes
    want = peers["sampling"].entropy_bits(draws, labels.logits().log_softmax(1))
    assert want is not None
    assert measured["sampling"]["entropy_bits"] == pytest.approx(want.mean().item())
    alone = measure_peers({"sampling": peers["sampling"]}, labels, seed=3)
    assert alone["sampling"]["bits"] == measured["sampling"]["bits"] == peers["sampling"].bits(draws).mean().item()


@pytest.mark.parametrize("name", [name for name in text_peers(300, hidden_labels().head) if name != "teacher"])
def test_labels_of_a_peer_are_the_same_whenever_they_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = hidden_labels(40, vocabulary=300)
    peer = text_peers(300, labels.head)[name]
    monkeypatch.setattr("vqlabel.report.text.measure.chunk_rows", lambda vocabulary: 16)
    stored = PeerLabels(peer, labels, seed=5)
    every = stored(torch.arange(40))
    assert torch.allclose(stored(torch.tensor([39, 0, 17])), every[[39, 0, 17]], atol=1e-6)
    assert stored.bits == peer.bits(stored.codes).mean().item()
    if not name.startswith("sampling"):
        assert torch.allclose(every, recode(peer, TeacherRows.of(labels)), atol=1e-5)
