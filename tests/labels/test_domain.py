"""Logits, probabilities and other values are distinguished by a sample of rows, and remedies give correct labels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vqlabel.errors import BadLabels
from vqlabel.labels import LabelSource, Support, open_labels
from vqlabel.labels.constant_rows import ConstantRows

N, C = 9000, 20  # more than a batch
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(N, C)) * 3).astype(np.float32)
PROBS = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype(np.float32)
SIGMOID = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)


def largest(labels: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    return np.where(labels >= np.sort(labels, 1)[:, -k, None], labels, 0)


def changed(labels: NDArray[np.float32], at: Any, value: Any) -> NDArray[np.float32]:
    labels = labels.copy()
    labels[at] = value
    return labels


Open = Callable[..., LabelSource]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def opened(labels: NDArray[np.float32], domain: str | None = None) -> LabelSource:
        np.save(tmp_path / "a.npy", labels)
        return open_labels(tmp_path / "a.npy", domain=domain)

    return opened


KEPT = largest(PROBS, 5)
NOISY = changed(PROBS, (slice(None), 0), -1e-7)
REFUSED: dict[str, tuple[NDArray[np.float32], tuple[str | None, ...], str]] = {
    "probabilities": (PROBS, (None, "logits"), r"sampled rows are non-negative and sum to 1, so these are probabilities; pass --domain probs$"),
    "most rows": (changed(PROBS, slice(0, 4000), 3), (None, "logits"), r"pass --domain probs; [\d,]+ rows do not: correct them, or leave them out"),
    "the second half": (np.concatenate([LOGITS, PROBS]), (None, "logits"), r"; [\d,]+ rows do not: correct them, or leave them out"),
    "one row not written": (changed(PROBS, 7, 0), (None,), r"pass --domain probs$"),
    "top 5 of probabilities": (KEPT, (None, "logits"), "rows have up to 5 of 20 values above 0 .* pass --domain probs, which reads the other classes as 0"),
    "percentages": (100 * PROBS, (None, "logits", "probs"), "these are percentages; divide them by 100 and pass --domain probs"),
    "outputs of sigmoids": (SIGMOID, (None, "probs"), r"save the logits, log\(p / \(1 - p\)\), and pass --domain sigmoid"),
    "half of every probability": (PROBS / 2, (None, "probs"), r"normalise rows to sum to 1, p / p\.sum\(1, keepdims=True\), and pass --domain probs"),
    "top 5 of logits, the rest 0": (largest(LOGITS + 20, 5), (None,), r"write -10000 for classes that were not kept, np\.where\(x == 0, -1e4, x\)"),
    "logits": (LOGITS, ("probs",), "these are not probabilities; pass --domain logits"),
    "noise below 0": (NOISY, (None, "logits", "probs"), r"clip them, np\.clip\(p, 0, None\), and pass --domain probs"),
    "sums of 3": (3 * PROBS, ("probs",), r"for logits, such as cosine similarities, pass --domain logits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_values_of_another_domain_are_refused_with_the_remedies(case: str, opened: Open) -> None:
    labels, domains, message = REFUSED[case]
    for domain in domains:
        with pytest.raises(BadLabels, match=message):
            opened(labels, domain)


@pytest.mark.parametrize(
    "remedy", ["log(p / (1 - p))", "p / p.sum(1, keepdims=True)", "np.clip(p, 0, None)", "np.where(x == 0, -1e4, x)"]
)
def test_the_remedy_in_the_message_gives_the_right_labels(remedy: str, opened: Open) -> None:
    labels = {"log": SIGMOID, "p /": PROBS / 2, "np.c": NOISY, "np.w": largest(LOGITS + 20, 5)}[
        re.match(r"log|p /|np\.[cw]", remedy)[0]
    ]  # type: ignore[index]
    corrected = eval(remedy, {"np": np, "log": np.log, "p": labels, "x": labels})
    domain = "probs" if remedy.startswith(("p /", "np.clip")) else "logits"
    assert opened(corrected, domain).domain == domain
    with pytest.raises(BadLabels, match=re.escape(remedy)):
        opened(labels)


def test_topk_probabilities_are_detected(opened: Open) -> None:
    for labels in (KEPT, changed(KEPT, slice(8000, 9000), largest(PROBS[8000:], 6))):
        source = opened(labels, "probs")
        k = int((labels != 0).sum(1).max())
        assert source.support == Support(k=k, rest="zero")
        assert f"read as top-{k} probabilities" in source.notes[0]
        assert np.array_equal(np.concatenate([batch.labels for batch in source]), labels)


def test_dense_probabilities_have_no_support(opened: Open) -> None:
    assert opened(PROBS, "probs").support is None
    assert opened(np.round(PROBS, 2) / np.round(PROBS, 2).sum(1, keepdims=True), "probs").support is None, "zeros by rounding"


def test_renormalised_topk_probabilities_are_detected(opened: Open) -> None:
    one_hot = np.eye(C, dtype=np.float32)[RNG.integers(0, C, 500)]
    for labels, k in ((KEPT / KEPT.sum(1, keepdims=True), 5), (one_hot, 1)):
        source = opened(labels, "probs")
        assert source.support == Support(k=k, rest="zero")
        assert f"rows sum to 1 and all but {k} values are 0" in source.notes[0]


@pytest.mark.parametrize("fill", [-100.0, -1e4, -65504.0])
def test_topk_logits_with_a_fill_value_are_detected(fill: float, opened: Open) -> None:
    """For any number of classes: a codec must not approximate the fill value."""
    few = np.where(largest(LOGITS + 20, 5) == 0, fill, LOGITS)
    masked = np.where(RNG.random(LOGITS.shape) < 0.1, fill, LOGITS)
    some_rows = np.where((RNG.random((len(LOGITS), 1)) < 0.3) & (np.arange(C) < 10), fill, LOGITS)
    for labels, k in ((few, 5), (masked, int((masked > fill).sum(1).max())), (some_rows, C)):
        source = opened(labels.astype(np.float32))
        assert source.support == Support(k=k, rest="zero")
        assert (
            f"rows have logits for up to {k} classes, which differ from row to row, and {fill:.6g} for the others"
            in source.notes[0]
        )
        assert np.array_equal(np.concatenate([batch.labels for batch in source]), labels.astype(np.float32))
    assert opened((100 * LOGITS).astype(np.float32)).support is None, "logits that only vary widely"


def test_dense_logits_of_any_distribution_are_accepted(opened: Open) -> None:
    for labels in (LOGITS, LOGITS - LOGITS.min(1, keepdims=True), LOGITS + 50, changed(LOGITS, (slice(None), slice(0, 15)), -100)):
        source = opened(labels)
        assert (source.domain, source.support, source.notes) == ("logits", None, [])
    cosines = SIGMOID * 0.3
    assert opened(cosines, "logits").domain == "logits", "the user has decided"


def test_log_probabilities_are_read_as_logits_with_a_note(opened: Open) -> None:
    (sentence,) = opened(np.log(PROBS)).notes
    assert sentence.endswith("log-probabilities, which serve as logits: at T = 1 students get the teacher's probabilities")


def test_rows_of_zeros_do_not_affect_the_domain(opened: Open) -> None:
    with pytest.raises(BadLabels, match="so these are probabilities"):
        opened(changed(PROBS, slice(3000, 9000), 0))
    assert opened(changed(LOGITS, slice(3000, 9000), 0)).domain == "logits"
    assert opened(np.zeros((10, C), np.float32)).domain == "logits"


def test_an_unreadable_batch_is_refused_when_it_is_read(opened: Open) -> None:
    source = opened(changed(LOGITS, (0, 3), np.nan))
    with pytest.raises(BadLabels, match="row 0: class 3 is nan"):
        source.read(0)


def test_constant_rows_are_counted() -> None:
    labels = changed(changed(LOGITS[:200], 7, 0), slice(20, 24), 1.5)
    labels[30, 1:-1] = labels[30, 0] + 1
    labels[30, -1] = labels[30, 0]
    flat = ConstantRows(path=Path("a.npy"))
    assert np.flatnonzero(~flat.add(labels)).tolist() == [7, 20, 21, 22, 23]
    flat.check()
    assert flat.notes() == [
        "a.npy: 1 of 200 rows are all zero: were these labels never written?",
        "a.npy: 4 of 200 rows have the same value for all classes",
    ]
    flat.add(np.zeros((2, C), np.float32))
    with pytest.raises(
        BadLabels, match=r"a\.npy: 3 of 202 rows are all zero: were these labels never written\? Label these images again, or leave"
    ):
        flat.check()
    alike = ConstantRows(path=Path("a.npy"))
    alike.add(np.ones((3, C), np.float32))
    with pytest.raises(BadLabels, match="all 3 rows have the same value for all classes; such labels carry no information"):
        alike.check()
