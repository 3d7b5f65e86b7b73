"""`stats_text` with a dump: figures by dense formulas, and which documents are compared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vqlabel
from tests.text_corpus import random_codec, small_head, small_split, write_head, write_hidden_states, write_logits, write_text_file
from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.sample import TextSplit
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents

DOCUMENTS = 24


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A file, a dump of its documents, and the head."""
    folder = tmp_path_factory.mktemp("against")
    split = small_split(DOCUMENTS)
    write_text_file(folder / "labels.vql", random_codec(), split)
    return folder / "labels.vql", write_hidden_states(folder / "dump", split, repeated=3), write_head(folder)


def decoded_logits(file: Path, split: TextSplit) -> torch.Tensor:
    return vqlabel.open_text(file).decode(split.documents).logits().double()


def test_figures_are_those_of_dense_formulas_over_all_labels(packed: tuple[Path, Path, Path]) -> None:
    file, dump, head = packed
    split = small_split(DOCUMENTS)
    result = vqlabel.stats_text(file, against=dump, head=head)
    weight = small_head().weight.half().double()  # the head is stored in fp16
    raw, decoded = split.labels.hidden.double() @ weight.T, decoded_logits(file, split)
    expected = {}
    for t in (1, 2, 4):
        p, log_q = (raw / t).softmax(1), (decoded / t).log_softmax(1)
        expected[f"kl_T{t}"] = float(t**2 * (p * (p.log() - log_q)).sum(1).mean())
    p, q = raw.softmax(1), decoded.softmax(1)
    expected["top1_agreement"] = float((p.argmax(1) == q.argmax(1)).double().mean())
    expected["squared_error"] = float((p - q).square().sum(1).mean())
    expected["total_variation"] = float((p - q).abs().sum(1).mean() / 2)
    assert result["distortion"] == pytest.approx(expected, rel=2e-3)
    slope = np.polyfit(q.flatten().numpy(), p.flatten().numpy(), 1)[0]
    assert result["calibration"]["T1"]["slope"] == pytest.approx(slope, rel=2e-3)
    with_labels = int((split.documents.lengths > 1).sum())
    assert result["compared"] == {
        "labels": len(split.labels), "documents": with_labels, "seed": 0, "only_in_dump": 0, "only_in_file": 0,
    }  # fmt: skip
    assert result["same_head"] is False  # the file records 64 zeros
    assert result["labels"] == len(split.labels)  # the account is there as well


def test_logits_are_compared_as_they_are(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, split = packed[0], small_split(DOCUMENTS)
    result = vqlabel.stats_text(file, against=write_logits(tmp_path / "logits", split))
    p, log_q = split.labels.logits().double().softmax(1), decoded_logits(file, split).log_softmax(1)
    assert result["distortion"]["kl_T1"] == pytest.approx(float((p * (p.log() - log_q)).sum(1).mean()), rel=1e-5)
    assert result["same_head"] is None
    with pytest.raises(UsageError, match=r"--head .*: must be left out: .*logits holds logits, behind the head"):
        vqlabel.stats_text(file, against=tmp_path / "logits", head=packed[2])


def test_tokens_that_the_teacher_excludes_cost_nothing(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, split = packed[0], small_split(DOCUMENTS)
    logits = split.labels.logits().double()
    logits[:, 0] = -torch.inf
    p, log_q = logits.softmax(1), decoded_logits(file, split).log_softmax(1)
    result = vqlabel.stats_text(file, against=write_logits(tmp_path / "logits", split, -torch.inf))
    expected = float((torch.special.xlogy(p, p) - p * log_q).sum(1).mean())
    assert result["distortion"]["kl_T1"] == pytest.approx(expected, rel=1e-5)
    assert result["calibration"]["T1"]["bins"]


def test_documents_of_either_side_that_the_other_lacks_are_counted(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, _, head = packed
    whole, more = small_split(DOCUMENTS), small_split(8, seed=5)
    kept = whole.take(np.array([23, 0, 4, 2, 1, *range(9, 22)]))[0]  # document 0 has one token
    dump = write_hidden_states(tmp_path / "dump", joined(kept, more))
    compared = vqlabel.stats_text(file, against=dump, head=head)["compared"]
    assert compared["only_in_dump"] == 6  # of 8, two have one token
    assert compared["only_in_file"] == sum(whole.documents.lengths[[3, 5, 6, 7, 8, 22]] > 1) == 5
    assert compared["documents"] == int((kept.documents.lengths > 1).sum())
    assert compared["labels"] == len(kept.labels)


def joined(first: TextSplit, second: TextSplit) -> TextSplit:
    documents = Documents(
        *(np.concatenate([getattr(x.documents, name) for x in (first, second)]) for name in ("tokens", "lengths"))
    )
    hidden = torch.cat([first.labels.hidden, second.labels.hidden])
    return TextSplit(documents=documents, labels=HiddenLabels(hidden=hidden, head=first.labels.head))


def test_a_sample_has_whole_documents_of_the_seed(packed: tuple[Path, Path, Path]) -> None:
    file, dump, head = packed
    some = [vqlabel.stats_text(file, against=dump, head=head, labels=40, seed=seed) for seed in (0, 0, 1)]
    for result in some:
        assert 40 <= result["compared"]["labels"] < 40 + 19
    assert some[0] == some[1]
    assert some[0]["distortion"]["kl_T1"] != some[2]["distortion"]["kl_T1"]


def test_a_file_that_names_its_head_is_compared_with_it(tmp_path: Path) -> None:
    split, head = small_split(12), write_head(tmp_path)
    dump = write_hidden_states(tmp_path / "dump", split)
    config = vqlabel.TextFitConfig(bits=16, slots=1, codebook_size=4, ids=1, width=8, window=1, epochs=1, embed_head=False)
    vqlabel.pack_text(dump, tmp_path / "labels.vql", config, head=head)
    result = vqlabel.stats_text(tmp_path / "labels.vql", against=dump, head=head)
    assert result["same_head"] is True
    with pytest.raises(UsageError, match="names its output head and does not contain it"):
        vqlabel.stats_text(tmp_path / "labels.vql", against=dump)


def test_another_dump_is_refused_with_both_sides_named(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    file, dump, head = packed
    other = write_hidden_states(tmp_path / "other", small_split(20, seed=5))
    with pytest.raises(UsageError, match=r"other: none of its 17 documents is among the 20 of .*labels.vql: not the dump"):
        vqlabel.stats_text(file, against=other, head=head)
    save_file({"lm_head.weight": small_head().weight[:59].half()}, tmp_path / "less.safetensors")
    with pytest.raises(UsageError, match=r"dump has labels of 59 tokens, .*labels.vql of 60: not the dump it was packed from"):
        vqlabel.stats_text(file, against=small_dump(tmp_path), head=tmp_path / "less.safetensors")
    with pytest.raises(UsageError, match="holds hidden states; pass the teacher's output head with --head"):
        vqlabel.stats_text(file, against=dump)
    with pytest.raises(UsageError, match="labels is 0; it must be 1 or more"):
        vqlabel.stats_text(file, against=dump, head=head, labels=0)


def small_dump(folder: Path) -> Path:
    """Documents without token 59."""
    split = small_split(20)
    split.documents.tokens[split.documents.tokens == 59] = 0
    return write_hidden_states(folder / "dump", split)
