"""Which tokens rows belong to: right dumps pass, and the faults of wrong ones are named with both figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from text_dumps import responses, tensor, write_lines

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.text.checks import MARGIN, check_alignment, measure_alignment, settle_norm
from vqlabel.labels.text.head import StoredHead, open_head
from vqlabel.labels.text.open import open_text_labels
from vqlabel.labels.text.source import MappedSource, TextDocument, TextSource

V, D, LENGTHS = 60, 16, (14, 9, 1, 20, 12)
RNG = np.random.default_rng(0)
HEAD = RNG.normal(size=(V, D)).astype(np.float32) / 2
NORM = (RNG.normal(size=D) * 2).astype(np.float32)  # of both signs: states before it point elsewhere
TOKENS = [RNG.integers(0, V, length) for length in LENGTHS]


def states(tokens: NDArray[np.int64], shift: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[L, D] before and behind the norm, which expect token t + 1 + shift at t."""
    targets = np.tile(tokens, 3)[np.arange(len(tokens)) + 1 + shift]
    before = (HEAD[targets] / NORM * 3).astype(np.float32)
    rms = np.sqrt(np.square(before).mean(1, keepdims=True) + 1e-5)
    return before, before / rms * NORM


def dump(folder: Path, shift: int = 0, kind: str = "behind") -> TextSource:
    """Hidden states behind or before the norm, "layers" (an early one and that before the norm), or logits."""
    folder.mkdir(exist_ok=True)
    for at, tokens in enumerate(TOKENS):
        before, behind = states(tokens, shift)
        early = RNG.normal(size=before.shape)
        rows = {"before": before, "behind": behind, "layers": np.stack([early, before], 1), "logits": behind @ HEAD.T}[kind]
        name = "logits" if kind == "logits" else "hidden_states"
        save_file({"token_ids": tensor(tokens), name: tensor(rows.astype(np.float32))}, folder / f"{at}.safetensors")
    return open_text_labels(folder)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> StoredHead:
    folder = tmp_path_factory.mktemp("model")
    save_file({"lm_head.weight": tensor(HEAD), "model.norm.weight": tensor(NORM)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5}))
    return open_head(folder)


def mean_cost(rows: list[NDArray[Any]], targets: list[NDArray[np.int64]]) -> float:
    """By torch: the mean cross-entropy of targets under logits."""
    logits, ids = torch.from_numpy(np.concatenate(rows)).double(), torch.from_numpy(np.concatenate(targets))
    return float(torch.nn.functional.cross_entropy(logits, ids))


def test_the_figures_are_the_mean_cross_entropies_of_the_tokens(tmp_path: Path, head: StoredHead) -> None:
    figures = measure_alignment(dump(tmp_path), head)
    logits = [states(tokens)[1][:-1] @ HEAD.T for tokens in TOKENS]
    assert (figures.documents, figures.rows) == (4, sum(LENGTHS) - len(LENGTHS))
    assert figures.stored.next == pytest.approx(mean_cost(logits, [tokens[1:] for tokens in TOKENS]), rel=1e-5)
    assert figures.stored.before == pytest.approx(mean_cost(logits, [tokens[:-1] for tokens in TOKENS]), rel=1e-5)
    assert figures.stored.after == pytest.approx(
        mean_cost([part[:-1] for part in logits], [tokens[2:] for tokens in TOKENS]), rel=1e-5
    )
    sampled = np.concatenate([tokens for tokens in TOKENS if len(tokens) > 1])
    counts = np.bincount(sampled, minlength=V) + 1
    following = np.concatenate([tokens[1:] for tokens in TOKENS])
    assert figures.unigram == pytest.approx(float(-np.log(counts / counts.sum())[following].mean()))


def test_scale_bias_and_soft_cap_of_the_head_are_applied(tmp_path: Path) -> None:
    bias = np.linspace(-1, 1, V).astype(np.float32)
    save_file({"lm_head.weight": tensor(HEAD), "lm_head.bias": tensor(bias)}, tmp_path / "m.safetensors")
    head = open_head(tmp_path / "m.safetensors", scale=0.5, soft_cap=3.0)
    figures = measure_alignment(dump(tmp_path / "dump"), head)
    logits = [3 * np.tanh(0.5 * (states(tokens)[1][:-1] @ HEAD.T + bias) / 3) for tokens in TOKENS]
    assert figures.stored.next == pytest.approx(mean_cost(logits, [tokens[1:] for tokens in TOKENS]), rel=1e-5)
    assert figures.normed is None


def test_the_head_is_read_in_chunks_with_the_same_figures(
    tmp_path: Path, head: StoredHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dump(tmp_path)
    whole = measure_alignment(source, head).stored
    monkeypatch.setattr("vqlabel.labels.text.checks.CHUNK_NUMBERS", 7 * 51)
    assert measure_alignment(source, head).stored == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("kind", ["behind", "logits"])
def test_a_right_dump_passes(kind: str, tmp_path: Path, head: StoredHead) -> None:
    source = dump(tmp_path, kind=kind)
    figures = check_alignment(source, None if kind == "logits" else head)
    assert figures.stored.next < min(figures.unigram, figures.stored.before, figures.stored.after) - 1
    assert not figures.is_before_norm


@pytest.mark.parametrize("kind", ["behind", "logits"])
@pytest.mark.parametrize(
    ("shift", "message"),
    [(-1, "that of token t is {}: rows come one too late"), (1, r"that of token t \+ 2 is {}: rows come one too early")],
)
def test_rows_shifted_by_one_are_refused_with_both_figures(
    shift: int, message: str, kind: str, tmp_path: Path, head: StoredHead
) -> None:
    source, used = dump(tmp_path, shift, kind), None if kind == "logits" else head
    costs = measure_alignment(source, used).stored
    other = costs.before if shift < 0 else costs.after
    with pytest.raises(
        BadLabels,
        match=rf"the mean cross-entropy of token t \+ 1 under row t is {costs.next:.2f} nats on 51 rows of 4 documents, and {message.format(f'{other:.2f}')}",
    ):
        check_alignment(source, used)


def test_states_from_before_the_norm_are_refused_with_both_figures(tmp_path: Path, head: StoredHead) -> None:
    source = dump(tmp_path, kind="before")
    figures = measure_alignment(source, head)
    assert figures.normed is not None
    message = rf"row t is {figures.stored.next:.2f} nats .*, and {figures.normed.next:.2f} if the final norm model\.norm\.weight of .* is applied first: these are states from before it"
    with pytest.raises(BadLabels, match=message):
        check_alignment(source, head)


def test_the_norm_is_applied_where_it_is_missing_with_a_note(tmp_path: Path, head: StoredHead) -> None:
    source = settle_norm(dump(tmp_path / "before", kind="before"), head)
    for at, tokens in enumerate(TOKENS):
        np.testing.assert_allclose(source.read(at).rows, states(tokens)[1][:-1], rtol=1e-5)
    assert (source.about.dtype, source.about.details["final_norm"]["kind"]) == ("F32", "rms")
    assert source.notes[-2].endswith("before: the final norm model.norm.weight is applied to the hidden states")
    assert "the mean cross-entropy of the tokens is" in source.notes[-1]
    assert check_alignment(source, head).normed is None
    behind = dump(tmp_path / "behind")
    assert settle_norm(behind, head) is behind


def test_shifted_states_from_before_the_norm_are_refused_for_the_shift(tmp_path: Path, head: StoredHead) -> None:
    with pytest.raises(BadLabels, match="rows come one too late"):
        settle_norm(dump(tmp_path, -1, "before"), head)


def test_another_layer_of_the_dump_is_named_if_it_fits(tmp_path: Path, head: StoredHead) -> None:
    dump(tmp_path, kind="layers")
    with pytest.raises(
        BadLabels,
        match=r"but \d\.\d\d under a unigram model of the same tokens; it is \d\.\d\d under layer 1 of the dump behind the final norm, so layer 0 is not the last one",
    ):
        check_alignment(open_text_labels(tmp_path, layer=0), head)
    assert settle_norm(open_text_labels(tmp_path), head).about.details["layer"] == 1


class Noise(MappedSource):
    """Rows that know nothing."""

    def __init__(self, source: TextSource) -> None:
        super().__init__(source, source.about)

    def _mapped(self, document: TextDocument) -> TextDocument:
        return replace(document, rows=np.random.default_rng(document.tokens).normal(size=document.rows.shape) * 2)


def test_rows_that_fit_no_token_are_refused_with_both_figures(tmp_path: Path, head: StoredHead) -> None:
    source = Noise(dump(tmp_path))
    figures = measure_alignment(source, head)
    assert figures.stored.next > figures.unigram
    message = rf"row t is {figures.stored.next:.2f} nats .*, but {figures.unigram:.2f} under a unigram model of the same tokens; "
    with pytest.raises(
        BadLabels,
        match=message + "these are states of a layer that is not the last; or the head or the tokenizer is of another model",
    ):
        check_alignment(source, head)
    with pytest.raises(BadLabels, match="or from before the final norm, which was not found beside the head"):
        check_alignment(source, replace(head, norm=None))
    logits = Noise(dump(tmp_path / "logits", kind="logits"))
    with pytest.raises(
        BadLabels, match="under a unigram model of the same tokens; the rows are of another text, tokenizer or order of ids"
    ):
        check_alignment(logits)


def test_a_sample_of_few_rows_is_not_judged(tmp_path: Path, head: StoredHead) -> None:
    save_file({"tokens": tensor(TOKENS[0][:5]), "hidden": tensor(np.zeros((5, D), np.float32))}, tmp_path / "a.safetensors")
    source = open_text_labels(tmp_path)
    assert check_alignment(source, head).rows == 4
    assert settle_norm(source, head) is source
    save_file({"tokens": tensor(TOKENS[2]), "hidden": tensor(np.zeros((1, D), np.float32))}, tmp_path / "a.safetensors")
    assert check_alignment(open_text_labels(tmp_path), head).rows == 0


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path, head: StoredHead) -> None:
    hidden, logits = dump(tmp_path / "hidden"), dump(tmp_path / "logits", kind="logits")
    with pytest.raises(UsageError, match="holds hidden states; pass the output head of their model"):
        check_alignment(hidden)
    with pytest.raises(UsageError, match="holds logits labels, which need no head; leave out"):
        check_alignment(logits, head)
    save_file({"emb.weight": tensor(HEAD[:, :8])}, tmp_path / "b.safetensors")
    with pytest.raises(
        UsageError, match=r"hidden states of 16 numbers, but emb\.weight in .*b\.safetensors reads 8; it is of another model"
    ):
        check_alignment(hidden, open_head(tmp_path / "b.safetensors"))
    save_file({"emb.weight": tensor(HEAD[:30])}, tmp_path / "c.safetensors")
    with pytest.raises(
        BadLabels, match=r"has token \d+, but emb\.weight in .*c\.safetensors has a vocabulary of 30: it is of another tokenizer"
    ):
        check_alignment(hidden, open_head(tmp_path / "c.safetensors"))
    hidden.about = replace(hidden.about, vocabulary=64)
    with pytest.raises(
        UsageError, match=r"records a vocabulary of 64, but lm_head\.weight in .* has 60; pass vocab to both if one is padded"
    ):
        check_alignment(hidden, head)


def test_top_k_labels_are_judged_by_the_probability_of_the_token_or_its_share_of_the_rest(tmp_path: Path) -> None:
    lines, tokens, rows = responses(lengths=(12, 9, 14))
    source = open_text_labels(write_lines(tmp_path / "a.jsonl", lines), vocab=40)
    costs = [-np.log(part[np.arange(len(part)), ids[1:]]) for part, ids in zip(rows, tokens, strict=True)]
    assert measure_alignment(source).stored.next == pytest.approx(float(np.concatenate(costs).mean()), rel=1e-5)
    assert measure_alignment(open_text_labels(tmp_path / "a.jsonl", vocab=40, rest="zero")).stored.next == pytest.approx(
        float(np.concatenate(costs).mean()), rel=1e-5
    )
    with pytest.raises(BadLabels, match="the rows are of another text, tokenizer or order of ids"):
        check_alignment(source)


def test_a_margin_separates_readings_that_fit_alike(tmp_path: Path, head: StoredHead) -> None:
    source = dump(tmp_path)
    figures = measure_alignment(source, head)
    alike = replace(figures, normed=figures.stored._replace(next=figures.stored.next - 0.9 * MARGIN))
    better = replace(figures, normed=figures.stored._replace(next=figures.stored.next - 1.1 * MARGIN))
    assert (alike.is_before_norm, better.is_before_norm) == (False, True)
