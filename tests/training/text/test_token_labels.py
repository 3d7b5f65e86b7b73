"""Views of the labels of a batch of tokens: chunks of logits and probabilities, top-k, hidden states, dense labels."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.errors import UsageError
from vqlabel.metrics import factored
from vqlabel.training.text import labels as module
from vqlabel.training.text.labels import DenseLogits, LogitRows, TokenLabels

N, V, D = 40, 300, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_labels(source: LogitRows, n: int = N, hidden: Tensor | None = None) -> TokenLabels:
    index = torch.arange(n)
    return TokenLabels(position=index, next_tokens=index, classes=V, source=source, hidden_states=hidden)


@pytest.fixture(params=["dense", "hidden"])
def labels(request: pytest.FixtureRequest) -> TokenLabels:
    source = HiddenLabels(hidden=normal(N, D).half(), head=OutputHead(weight=normal(V, D, seed=1), soft_cap=30))
    return token_labels(source if request.param == "hidden" else DenseLogits(source.logits().bfloat16()))


def test_logits_of_a_slice_an_index_and_a_mask_are_those_of_all(labels: TokenLabels) -> None:
    every = labels.logits(slice(None))
    assert len(labels) == N and every.shape == (N, V) and every.dtype == torch.float32
    index = torch.tensor([3, 39, 3, 0])
    torch.testing.assert_close(labels.logits(slice(7, 19)), every[7:19])
    torch.testing.assert_close(labels.logits(index), every[index])
    torch.testing.assert_close(labels.logits(labels.position % 2 == 1), every[1::2])


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_probabilities_are_the_softmax_of_logits_over_the_temperature(temperature: float, labels: TokenLabels) -> None:
    probabilities = labels.probs(slice(5, 20), temperature)
    torch.testing.assert_close(probabilities, (labels.logits(slice(5, 20)) / temperature).softmax(1))
    assert probabilities.dtype == torch.float32


@pytest.mark.parametrize("k", [1, 7, V])
def test_topk_has_the_likeliest_tokens_with_their_log_probabilities(k: int, labels: TokenLabels) -> None:
    ids, log_probabilities = labels.topk(k)
    every = F.log_softmax(labels.logits(slice(None)), 1)
    assert ids.shape == log_probabilities.shape == (N, k) and ids.dtype == torch.int64
    torch.testing.assert_close(log_probabilities, every.sort(1, descending=True).values[:, :k])
    torch.testing.assert_close(every.gather(1, ids), log_probabilities)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_dense_labels_are_the_probabilities_of_all_rows(labels: TokenLabels) -> None:
    torch.testing.assert_close(labels.dense(), labels.probs(slice(None)))


def test_topk_and_dense_labels_are_computed_a_chunk_at_a_time(labels: TokenLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, asked, source = (labels.dense(), *labels.topk(3)), [], labels.source

    class Recorded:
        def logits(self, rows: slice | Tensor, /) -> Tensor:
            assert isinstance(rows, slice)
            asked.append((rows.start, rows.stop))
            return source.logits(rows)

    monkeypatch.setattr(factored, "CHUNK_BYTES", 1)  # 16 rows
    recorded = replace(labels, source=Recorded())
    results = recorded.dense(), *recorded.topk(3)
    assert asked == 2 * [(0, 16), (16, 32), (32, 40)]
    torch.testing.assert_close(results, expected)


def test_a_batch_without_labels_has_empty_views() -> None:
    labels = token_labels(DenseLogits(torch.empty(0, V)), n=0)
    ids, log_probabilities = labels.topk(3)
    assert ids.shape == log_probabilities.shape == (0, 3)
    assert labels.dense().shape == (0, V) and len(labels) == 0


def test_tokens_of_probability_0_have_a_logit_of_minus_infinity() -> None:
    logits = torch.zeros(1, V)
    logits[0, 4:] = -math.inf
    labels = token_labels(DenseLogits(logits), n=1)
    assert labels.dense()[0].tolist() == [0.25] * 4 + [0.0] * (V - 4)
    assert labels.topk(5)[1].tolist() == [[pytest.approx(math.log(0.25))] * 4 + [-math.inf]]


def test_views_are_float32_without_gradients_under_autocast() -> None:
    head = OutputHead(weight=normal(V, D, seed=1).requires_grad_(True))
    labels = token_labels(HiddenLabels(hidden=normal(N, D), head=head))
    expected = normal(N, D) @ head.weight.detach().T
    with torch.autocast("cpu", torch.bfloat16):
        logits, probabilities = labels.logits(slice(None)), labels.probs(slice(None))
    assert torch.equal(logits, expected)
    assert probabilities.dtype == torch.float32 and not probabilities.requires_grad


def test_hidden_states_are_the_teachers() -> None:
    states = normal(N, D)
    assert token_labels(DenseLogits(normal(N, V)), hidden=states).hidden() is states


def test_labels_cannot_be_changed(labels: TokenLabels) -> None:
    with pytest.raises(FrozenInstanceError):
        labels.classes = 3  # type: ignore[misc]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_hidden_states_of_labels_without_any_are_refused_with_a_remedy(labels: TokenLabels) -> None:
    with pytest.raises(
        UsageError, match=r"these labels have no hidden states of the teacher: .*; use logits\(rows\), probs\(rows\)"
    ):
        labels.hidden()


def test_too_many_dense_labels_are_refused_with_a_remedy(labels: TokenLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_DENSE == 2**30
    monkeypatch.setattr(module, "MAX_DENSE", N * V)
    labels.dense()
    monkeypatch.setattr(module, "MAX_DENSE", N * V - 1)
    message = (
        r"size of 40 dense labels of 300 tokens is 12000; it must be at most 11999 .*: read a chunk .* probs\(slice\(0, 27962\)\)"
    )
    with pytest.raises(UsageError, match=message):
        labels.dense()


@pytest.mark.parametrize("k", [0, V + 1, -1])
def test_k_out_of_range_is_refused(k: int, labels: TokenLabels) -> None:
    with pytest.raises(UsageError, match=rf"k is {k}; it must be 1\.\.300 \(the tokens of the vocabulary\)"):
        labels.topk(k)


@pytest.mark.parametrize("temperature", [0, -2.0, math.inf, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(temperature: float, labels: TokenLabels) -> None:
    with pytest.raises(UsageError, match=r"temperature is .*; it must be above 0"):
        labels.probs(slice(None), temperature)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("position", torch.zeros(3), r"position is 'torch\.float32 \[3\]'; it must be torch\.int64 \[3\]"),
        ("position", torch.zeros(2, 3, dtype=torch.int64), r"position is 'torch\.int64 \[2, 3\]'; it must be torch\.int64 \[2\]"),
        (
            "next_tokens",
            torch.zeros(39, dtype=torch.int64),
            r"next_tokens is 'torch\.int64 \[39\]'; it must be torch\.int64 \[40\]",
        ),
        (
            "next_tokens",
            torch.zeros(40, dtype=torch.int32),
            r"next_tokens is 'torch\.int32 \[40\]'; it must be torch\.int64 \[40\]",
        ),
        ("next_tokens", [0] * 40, "next_tokens is "),
        ("hidden_states", torch.zeros(39, 8), r"shape of hidden_states is \[39, 8\]; it must be \[40, d\], one row per label"),
        ("hidden_states", torch.zeros(40, 8, device="meta"), r"devices of .* is \['cpu', 'meta'\]; it must be one device"),
        ("classes", 2.5, "classes is "),
    ],
)
def test_fields_of_another_shape_or_type_are_refused(field: str, value: object, message: str, labels: TokenLabels) -> None:
    with pytest.raises(UsageError, match=message):
        replace(labels, **{field: value})  # type: ignore[arg-type]
