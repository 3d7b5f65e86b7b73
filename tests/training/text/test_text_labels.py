"""Labels of whole documents: batches, hidden states and DistillKit's columns."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vqlabel
from tests.text_corpus import random_codec, small_split
from tests.training.text.conftest import TextFile, write
from vqlabel.errors import UsageError
from vqlabel.training.text.references import COLUMN
from vqlabel.training.text.text_labels import TextLabels, UnknownDocument


def test_labels_of_documents_are_those_that_the_codec_encoded(file: TextFile) -> None:
    codec, split = random_codec(price=0.01), small_split(30)
    decoded = codec.decode(codec.encode(split.labels, split.documents), split.documents)
    labels = TextLabels(file.path)
    for index in (1, 4, 11):
        document, rows = split.documents.take(np.array([index]))
        batch = labels.of(torch.from_numpy(document.tokens)[None])
        expected = decoded.logits(torch.from_numpy(rows))
        torch.testing.assert_close(batch.logits(slice(None)), expected, rtol=1e-4, atol=1e-4)
        assert batch.next_tokens is not None and batch.next_tokens.tolist() == document.tokens[1:].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_packed_documents_keep_their_positions(side: str, file: TextFile) -> None:
    labels, documents = TextLabels(file.path), file.documents[1:4]
    width, tokens, mask = 25, torch.zeros(3, 25, dtype=torch.int64), torch.zeros(3, 25, dtype=torch.int64)
    positions = []
    for row, document in enumerate(documents):
        start = width - len(document) if side == "left" else 0
        tokens[row, start : start + len(document)], mask[row, start : start + len(document)] = torch.from_numpy(document), 1
        positions += range(row * width + start, row * width + start + len(document) - 1)
    batch = labels.of(tokens, mask=mask)
    assert batch.position.tolist() == positions
    torch.testing.assert_close(batch.logits(slice(None)), torch.cat(file.logits[1:4]), rtol=1e-4, atol=1e-4)
    packed = torch.from_numpy(np.concatenate(documents))[None]
    of_packed = labels.of(packed, position_ids=torch.cat([torch.arange(len(document)) for document in documents])[None])
    torch.testing.assert_close(of_packed.logits(slice(None)), torch.cat(file.logits[1:4]), rtol=1e-4, atol=1e-4)


def test_a_document_is_in_the_file_if_all_its_tokens_are(file: TextFile) -> None:
    labels = TextLabels(file.path)
    assert file.documents[1] in labels and file.documents[1].tolist() in labels and file.documents[1][:-1] not in labels
    with pytest.raises(UnknownDocument, match="has no document with these 17 tokens"):
        labels.of(torch.from_numpy(file.documents[1][:-1])[None])


@pytest.mark.parametrize("index", [0, 1, 7])  # 0 and 7 have one token
def test_distillkits_columns_have_the_likeliest_tokens_of_every_token_but_the_last(index: int, file: TextFile) -> None:
    tokens, logits = file.documents[index], file.logits[index]
    columns = TextLabels(file.path).distillkit(tokens.tolist(), k=7)
    assert list(columns) == ["input_ids", "token_ids", "top_values"]
    np.testing.assert_array_equal(columns["input_ids"], tokens[:-1])
    assert columns["token_ids"].dtype == np.int64 and columns["token_ids"].shape == columns["top_values"].shape == (
        len(tokens) - 1,
        7,
    )
    log_probabilities = F.log_softmax(logits, 1)
    expected = log_probabilities.sort(1, descending=True).values[:, :7]
    np.testing.assert_allclose(columns["top_values"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_probabilities.gather(1, torch.from_numpy(columns["token_ids"])), expected, rtol=1e-4, atol=1e-4)


def test_distillkits_columns_of_more_tokens_than_the_vocabulary_are_refused(file: TextFile) -> None:
    with pytest.raises(UsageError, match=r"k is 61; it must be 1\.\.60"):
        TextLabels(file.path).distillkit(file.documents[1], k=61)


@pytest.mark.parametrize("latent", [8, 3])
def test_hidden_states_times_the_head_are_the_labels_without_exact_ids(latent: int, tmp_path: Path) -> None:
    file = write(tmp_path, latent=latent, ids=0)
    labels = TextLabels(file.path)
    hidden, decoder = labels.hidden(file.documents[1]), labels.codec.decoder
    assert hidden.shape == (len(file.documents[1]) - 1, 8) and hidden.dtype == torch.float32
    latents = (hidden - decoder.center) @ torch.linalg.pinv(decoder.projection)
    torch.testing.assert_close(decoder.logits(latents), file.logits[1], rtol=1e-3, atol=1e-3)


def test_labels_pickle_with_their_corpus_and_refuse_a_replaced_file(file: TextFile, tmp_path: Path) -> None:
    path = Path(shutil.copy(file.path, tmp_path / "labels.vql"))
    pickled = pickle.dumps(TextLabels(path, corpus=file.documents))
    references = torch.from_numpy(TextLabels(path).attach({"input_ids": file.documents[1]})[COLUMN])[None]
    torch.testing.assert_close(pickle.loads(pickled).at(references).logits(slice(None)), file.logits[1], rtol=1e-4, atol=1e-4)
    path.unlink()
    write(tmp_path, prior=None)
    with pytest.raises(UsageError, match="replaced"):
        pickle.loads(pickled)


def test_cross_entropy_with_labels_whose_next_tokens_are_not_known_is_refused(priorless: TextFile) -> None:
    labels = TextLabels(priorless.path)
    references = torch.from_numpy(labels.attach({"input_ids": priorless.documents[1]})[COLUMN])[None]
    batch, student = labels.at(references), torch.zeros(references.numel(), 60)
    assert vqlabel.kd_loss(student, None, batch) == vqlabel.kd_loss(student, None, replace(batch, next_tokens=batch.position))
    with pytest.raises(UsageError, match=r"ce_weight is 0\.1, and these labels have no next tokens; open their file with corpus="):
        vqlabel.kd_loss(student, None, batch, ce_weight=0.1)
