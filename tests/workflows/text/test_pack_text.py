"""A dump of hidden states -> a `.vql` -> labels in a training loop, and back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vqlabel
from tests.text_corpus import VOCABULARY, WIDTH, small_head, small_split, write_head, write_hidden_states
from vqlabel.codecs.file import load_stored_codec
from vqlabel.codecs.token_vqae.sample import TextSplit
from vqlabel.config import TextFitConfig
from vqlabel.errors import BadLabels, TargetExists, UsageError
from vqlabel.labels.text.documents import Documents
from vqlabel.progress import silent
from vqlabel.training.text.text_labels import UnknownDocument
from vqlabel.workflows.text.open import open_text_dump
from vqlabel.workflows.text.sample import read_sample

QUICK = TextFitConfig(bits=24, slots=2, codebook_size=8, ids=2, width=16, window=2, epochs=3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A dump, its head and its .vql."""
    folder = tmp_path_factory.mktemp("text")
    dump, head = write_hidden_states(folder / "dump", small_split(30)), write_head(folder)
    vqlabel.pack_text(dump, folder / "labels.vql", QUICK, head=head)
    return dump, head, folder / "labels.vql"


def divergence(labels: vqlabel.TextLabels, split: TextSplit) -> float:
    p, log_q = split.labels.probs(), labels.decode(split.documents).logits().log_softmax(1)
    return float((torch.special.xlogy(p, p) - p * log_q).sum(1).mean())


def test_labels_of_all_documents_are_decoded_near_the_teacher_s(packed: tuple[Path, Path, Path]) -> None:
    labels, split = vqlabel.open_text(packed[2]), small_split(30)
    assert labels.file.rows == len(split.labels)
    p = split.labels.probs()
    of_mean = float((torch.special.xlogy(p, p) - p * p.mean(0).log()).sum(1).mean())
    assert divergence(labels, split) < 0.6 * of_mean
    assert labels.file.label_bits < 30


def test_a_batch_s_labels_are_those_of_its_documents_whatever_the_padding(packed: tuple[Path, Path, Path]) -> None:
    labels, split = vqlabel.open_text(packed[2]), small_split(30)
    chosen = [3, 8, 1]
    texts = [split.documents.take(np.array([i]))[0].tokens for i in chosen]
    tokens, mask = torch.zeros(3, 24, dtype=torch.long), torch.zeros(3, 24, dtype=torch.long)
    for row, text in enumerate(texts):
        start = 24 - len(text) if row == 1 else 0  # one document is padded on the left
        tokens[row, start : start + len(text)] = torch.from_numpy(text)
        mask[row, start : start + len(text)] = 1
    batch = labels.of(tokens, mask=mask)
    expected = labels.decode(Documents.of(texts)).logits()
    torch.testing.assert_close(batch.logits(slice(None)), expected)
    flat = tokens.flatten()
    assert torch.equal(flat[batch.position + 1], batch.next_tokens)


def test_packed_documents_are_told_apart_by_their_positions(packed: tuple[Path, Path, Path]) -> None:
    labels, split = vqlabel.open_text(packed[2]), small_split(30)
    texts = [split.documents.take(np.array([i]))[0].tokens for i in (4, 2)]
    tokens = torch.from_numpy(np.concatenate(texts))[None]
    positions = torch.cat([torch.arange(len(text)) for text in texts])[None]
    batch = labels.of(tokens, position_ids=positions)
    torch.testing.assert_close(batch.logits(slice(None)), labels.decode(Documents.of(texts)).logits())


def test_a_student_learns_from_a_batch(packed: tuple[Path, Path, Path]) -> None:
    labels, split = vqlabel.open_text(packed[2]), small_split(30)
    tokens = torch.from_numpy(split.documents.take(np.array([3]))[0].tokens)[None]
    hidden, head = torch.zeros(1, tokens.shape[1], 4, requires_grad=True), torch.randn(60, 4)
    vqlabel.kd_loss(hidden, head, labels.of(tokens)).backward()
    assert hidden.grad is not None
    assert hidden.grad[0, :-1].abs().sum(1).min() > 0
    assert hidden.grad[0, -1].abs().sum() == 0


@pytest.mark.parametrize("change", ["shortened", "with a token before it"])
def test_another_text_is_refused(packed: tuple[Path, Path, Path], change: str) -> None:
    labels, split = vqlabel.open_text(packed[2]), small_split(30)
    tokens = torch.from_numpy(split.documents.take(np.array([3]))[0].tokens)
    other = tokens[:-1] if change == "shortened" else torch.cat([torch.tensor([1]), tokens])
    with pytest.raises(UnknownDocument, match=f"has no document with these {len(other)} tokens"):
        labels.of(other[None])
    assert other not in labels
    assert tokens in labels


def test_the_same_dump_gives_the_same_bytes(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, file = packed
    vqlabel.pack_text(dump, tmp_path / "again.vql", QUICK, head=head)
    assert (tmp_path / "again.vql").read_bytes() == file.read_bytes()


def test_a_document_that_occurs_twice_is_stored_once(tmp_path: Path) -> None:
    dump, head = write_hidden_states(tmp_path / "dump", small_split(12), repeated=4), write_head(tmp_path)
    result = vqlabel.pack_text(dump, tmp_path / "labels.vql", replace(QUICK, epochs=1), head=head)
    assert result["repeated"] == 3  # the first document has one token, so it is not stored at all
    assert result["documents"] == int((small_split(12).documents.lengths > 1).sum())


def test_a_codec_file_packs_at_other_rates(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = packed
    vqlabel.fit_text(dump, QUICK, head=head, out=tmp_path / "codec.safetensors")
    sizes, kls = [], []
    for bits in (8, 16, 24):
        out = tmp_path / f"{bits}.vql"
        result = vqlabel.pack_text(dump, out, TextFitConfig(bits=bits), head=head, codec=tmp_path / "codec.safetensors")
        assert result["code_bits"] == pytest.approx(bits, rel=0.3)
        sizes.append(result["bytes"])
        kls.append(divergence(vqlabel.open_text(out), small_split(30)))
    assert sizes == sorted(sizes)
    assert kls == sorted(kls, reverse=True)


def test_a_referenced_head_is_needed_and_checked(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, embedded = packed
    out = tmp_path / "small.vql"
    vqlabel.pack_text(dump, out, replace(QUICK, embed_head=False), head=head)
    assert out.stat().st_size < embedded.stat().st_size
    assert divergence(vqlabel.open_text(out, head=head), small_split(30)) < 2
    with pytest.raises(UsageError, match=r"names its output head and does not contain it: pass head=, the model model.safetensors"):
        vqlabel.open_text(out)
    other = write_head(tmp_path, "other.safetensors", seed=1)
    with pytest.raises(
        UsageError, match=r"its output head lm_head.weight has sha256 [0-9a-f]{64}; .* was made with model.safetensors"
    ):
        vqlabel.open_text(out, head=other)


def test_a_codec_of_another_head_is_refused(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = packed
    vqlabel.fit_text(dump, replace(QUICK, epochs=1), head=head, out=tmp_path / "codec.safetensors")
    write_head(tmp_path, "other.safetensors", factor=1.01)
    with pytest.raises(UsageError, match="was fitted for a head with sha256"):
        vqlabel.pack_text(dump, tmp_path / "a.vql", head=tmp_path / "other.safetensors", codec=tmp_path / "codec.safetensors")
    with pytest.raises(UsageError, match="token_vqae, is for the labels of documents"):
        vqlabel.load_codec(tmp_path / "codec.safetensors")
    assert load_stored_codec(tmp_path / "codec.safetensors")[0].kind == "token_vqae"


def test_the_head_is_required_and_an_existing_file_is_kept(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, file = packed
    with pytest.raises(UsageError, match="holds hidden states; pass the teacher's output head with --head"):
        vqlabel.pack_text(dump, tmp_path / "labels.vql")
    with pytest.raises(TargetExists):
        vqlabel.pack_text(dump, file, head=head)
    assert not (tmp_path / "labels.vql").exists()


def test_a_budget_below_the_codec_is_refused(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = packed
    config = TextFitConfig(ratio=100, slots=2, codebook_size=8, ids=2, width=16, window=2, epochs=1)
    with pytest.raises(UsageError, match="codec and table of documents alone take"):
        vqlabel.pack_text(dump, tmp_path / "labels.vql", config, head=head)


def test_a_file_of_short_documents_stays_in_a_budget_of_bytes(tmp_path: Path) -> None:
    documents, budget = 3000, 80_000
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (documents, 4))
    hidden = small_head().weight[torch.from_numpy(tokens[:, 1:])] + 0.5 * torch.randn(documents, 3, WIDTH)
    (tmp_path / "dump").mkdir()
    np.save(tmp_path / "dump" / "tokens.npy", tokens)
    np.save(tmp_path / "dump" / "hidden.npy", hidden.half().numpy())
    config = TextFitConfig(bytes=budget, slots=2, codebook_size=8, ids=2, width=16, window=2, epochs=1, prior=False)
    result = vqlabel.pack_text(tmp_path / "dump", tmp_path / "labels.vql", config, head=write_head(tmp_path))
    table = 16 * documents
    assert table < result["bytes"] <= budget


def test_dense_logits_are_packed_without_a_head(tmp_path: Path) -> None:
    split = small_split(30)
    (tmp_path / "dump").mkdir()
    for i in range(len(split.documents)):
        one, _ = split.take(np.array([i]))
        tensors = {"tokens": torch.from_numpy(one.documents.tokens.astype(np.int32)), "logits": one.labels.logits().half()}
        save_file(tensors, tmp_path / "dump" / f"{i:03d}.safetensors")
    result = vqlabel.pack_text(tmp_path / "dump", tmp_path / "labels.vql", QUICK)
    assert any("logits are read as hidden states of 8 numbers" in note for note in result["notes"])
    assert divergence(vqlabel.open_text(tmp_path / "labels.vql"), split) < 1.2
    with pytest.raises(UsageError, match=r"must be left out: .* holds logits, behind the head"):
        vqlabel.pack_text(tmp_path / "dump", tmp_path / "other.vql", QUICK, head=write_head(tmp_path))
    with pytest.raises(UsageError, match=r"--reference-head: must be left out: .* holds logits"):
        vqlabel.pack_text(tmp_path / "dump", tmp_path / "other.vql", replace(QUICK, embed_head=False))


def write_logits(folder: Path, split: TextSplit) -> Path:
    """Dense logits of the documents, a file each."""
    folder.mkdir()
    for i in range(len(split.documents)):
        one = split.take(np.array([i]))[0]
        logits = torch.cat([one.labels.logits(slice(None)), torch.zeros(1, one.labels.shape[1])])
        tokens = torch.from_numpy(one.documents.tokens.astype(np.int32))
        save_file({"token_ids": tokens, "logits": logits.half()}, folder / f"{i:03d}.safetensors")
    return folder


def test_a_dump_of_logits_packs_with_a_codec_file_and_without_one_alike(tmp_path: Path) -> None:
    split = small_split(30)
    dump = write_logits(tmp_path / "dump", split)
    config = replace(QUICK, epochs=1)
    vqlabel.fit_text(dump, config, out=tmp_path / "codec.safetensors")
    vqlabel.pack_text(dump, tmp_path / "fitted.vql", config)
    result = vqlabel.pack_text(dump, tmp_path / "codec.vql", codec=tmp_path / "codec.safetensors")
    assert result["fit"]["codec_file"] == str(tmp_path / "codec.safetensors")
    by_fit, by_codec = (vqlabel.open_text(tmp_path / name) for name in ("fitted.vql", "codec.vql"))
    torch.testing.assert_close(by_codec.decode(split.documents).logits(), by_fit.decode(split.documents).logits())
    with pytest.raises(UsageError, match="packed from logits"):
        by_fit.hidden(split.documents.take(np.array([3]))[0].tokens)


def test_labels_of_a_head_that_caps_its_logits_are_no_hidden_states(tmp_path: Path) -> None:
    split = small_split(30)
    (tmp_path / "model").mkdir()
    head = write_head(tmp_path / "model")
    tokens = torch.from_numpy(split.documents.take(np.array([3]))[0].tokens)
    dump = write_hidden_states(tmp_path / "dump", split)
    for cap in (None, 30.0):
        (tmp_path / "model" / "config.json").write_text(json.dumps({"final_logit_softcapping": cap}))
        vqlabel.pack_text(dump, tmp_path / "labels.vql", replace(QUICK, epochs=1), head=head.parent, overwrite=True)
        labels = vqlabel.open_text(tmp_path / "labels.vql")
        if cap is None:
            assert labels.hidden(tokens).shape == (len(tokens) - 1, WIDTH)
        else:
            with pytest.raises(UsageError, match="or the teacher's head caps its logits"):
                labels.hidden(tokens)


def test_the_rate_that_pack_reports_is_that_of_the_bits_it_was_asked_for(packed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    dump, head, _ = packed
    vqlabel.fit_text(dump, replace(QUICK, epochs=1), head=head, out=tmp_path / "codec.safetensors")
    for bits in (8.0, 16.0):
        result = vqlabel.pack_text(
            dump, tmp_path / "out.vql", TextFitConfig(bits=bits), head=head, codec=tmp_path / "codec.safetensors", overwrite=True
        )
        assert result["fit"]["held_out"]["bits"] == pytest.approx(bits)
        assert result["code_bits"] == pytest.approx(bits, rel=0.3)


def test_no_text_is_both_held_out_and_learned_from(tmp_path: Path) -> None:
    dump, head = write_hidden_states(tmp_path / "dump", small_split(12), repeated=12), write_head(tmp_path)
    opened = open_text_dump(dump, head)
    for seed in range(5):
        sample = read_sample(opened.source, 1000, seed, silent)
        held_out, train = ([document.tokens.tobytes() for document in documents] for documents in (sample.held_out, sample.train))
        assert not set(held_out) & set(train)
        assert len(set(train)) == len(train)


def test_a_dump_of_one_text_is_refused(tmp_path: Path) -> None:
    one = small_split(12).take(np.array([3]))[0]
    dump, head = write_hidden_states(tmp_path / "dump", one, repeated=1), write_head(tmp_path)
    opened = open_text_dump(dump, head)
    with pytest.raises(BadLabels, match="all sampled documents have the same tokens; a fit holds one document out, so it needs 2"):
        read_sample(opened.source, 1000, 0, silent)
