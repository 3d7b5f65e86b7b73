"""Labels by reference equal labels by document, however documents are packed, cut, shuffled, sharded or padded."""

import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.training.text.conftest import TextFile, write
from vqlabel.codecs.token_vqae.decoder import TokenDecoder
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents
from vqlabel.training.text.references import COLUMN, references_of
from vqlabel.training.text.text_labels import TextLabels, UnknownDocument
from vqlabel.vql.text.file import TextVqlFile

LENGTH = 7  # tokens of a packed row; documents have up to 20


def attached(labels: TextLabels, documents: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    return [labels.attach({"input_ids": tokens})[COLUMN] for tokens in documents]


def packed(parts: Sequence[NDArray[np.int64]], fill: int) -> Tensor:
    """[b, LENGTH] of all numbers one after the other; the last row is filled."""
    joined = np.concatenate(parts)
    return torch.from_numpy(np.append(joined, [fill] * (-len(joined) % LENGTH)).reshape(-1, LENGTH))


def expected(file: TextFile, order: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, next tokens and logits of the labels of documents that are packed in some order."""
    documents = Documents.of([file.documents[i] for i in order])
    return (
        torch.from_numpy(documents.position),
        torch.from_numpy(documents.next_tokens),
        torch.cat([file.logits[i] for i in order]),
    )


def shuffled(count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(3)).tolist()


ORDERS: dict[str, Callable[[int], list[int]]] = {
    "packed": lambda count: list(range(count)),
    "shuffled": shuffled,
    "repeated": lambda count: [*shuffled(count), 5, 5, 3],
}


@pytest.mark.parametrize("order", ORDERS)
def test_labels_by_reference_equal_those_by_document_after_packing_with_cut_documents(order: str, file: TextFile) -> None:
    labels, chosen = file.open(), ORDERS[order](len(file.documents))
    references = attached(labels, file.documents)
    tokens = packed([file.documents[i] for i in chosen], 0)
    batch = labels.at(packed([references[i] for i in chosen], -1), tokens)
    position, next_tokens, logits = expected(file, chosen)
    assert torch.equal(batch.position, position)
    assert torch.equal(batch.next_tokens, next_tokens)  # type: ignore[arg-type]
    torch.testing.assert_close(batch.logits(slice(None)), logits, rtol=1e-4, atol=1e-4)


def test_labels_by_reference_are_the_same_when_the_corpus_is_resharded(file: TextFile) -> None:
    count = len(file.documents)
    shards = [file.documents[count // 3 :], file.documents[: count // 3]]
    references = [part for shard in shards for part in attached(TextLabels(file.path), shard)]
    batch = TextLabels(file.path, corpus=shards[0] + shards[1]).at(packed(references, -1))
    position, next_tokens, logits = expected(file, [*range(count // 3, count), *range(count // 3)])
    assert torch.equal(batch.position, position) and torch.equal(batch.next_tokens, next_tokens)  # type: ignore[arg-type]
    torch.testing.assert_close(batch.logits(slice(None)), logits, rtol=1e-4, atol=1e-4)


def test_a_codec_without_prior_needs_no_corpus_and_has_no_next_tokens(priorless: TextFile) -> None:
    labels, order = TextLabels(priorless.path), list(range(len(priorless.documents)))
    batch = labels.at(packed(attached(labels, priorless.documents), -1))
    position, next_tokens, logits = expected(priorless, order)
    assert torch.equal(batch.position, position) and batch.next_tokens is None
    torch.testing.assert_close(batch.logits(slice(None)), logits)
    assert torch.equal(priorless.open().at(packed(attached(labels, priorless.documents), -1)).next_tokens, next_tokens)  # type: ignore[arg-type]


def test_every_label_alone_equals_that_of_its_document(file: TextFile) -> None:
    labels, longest = file.open(), max(range(len(file.documents)), key=lambda i: len(file.documents[i]))
    references, logits = attached(labels, file.documents)[longest], file.logits[longest]
    assert len(references) > 4 * labels.codec.config.reach
    for row in range(len(references) - 1):
        label = labels.at(torch.from_numpy(references[row : row + 1])[None])
        torch.testing.assert_close(label.logits(slice(None))[0], logits[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "windows", "read"),
    [
        ([0, 1, 18], [7, 6], [2, 1]),  # a label depends on 4 tokens before its own and 4 after the next one
        ([0, 9], [15], [10]),  # tokens 0..5 and 5..14 share one
        ([0, 10], [6, 10], [1, 1]),
    ],
)
def test_only_the_tokens_around_needed_labels_are_decoded_and_only_these_labels_are_read(
    rows: list[int], windows: list[int], read: list[int], file: TextFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, longest = file.open(), next(tokens for tokens in file.documents if len(tokens) == 20)
    references = labels.attach({"input_ids": longest})[COLUMN]
    tokens_decoded, labels_read, predict, fields = list[int](), list[int](), TokenDecoder.predict, TextVqlFile.fields

    def recorded(decoder: TokenDecoder, documents: Documents) -> Tensor:
        tokens_decoded.extend(documents.lengths.tolist())
        return predict(decoder, documents)

    def counted(opened: TextVqlFile, *arguments: Any) -> Any:
        labels_read.append(len(part := fields(opened, *arguments)))
        return part

    monkeypatch.setattr(TokenDecoder, "predict", recorded)
    monkeypatch.setattr(TextVqlFile, "fields", counted)
    labels.at(torch.from_numpy(references[rows])[None])
    assert (tokens_decoded, labels_read) == (windows, read)


def test_a_batch_without_references_has_no_labels(file: TextFile) -> None:
    batch = file.open().at(torch.tensor([[-1, -100], [-1, -1]]), torch.zeros(2, 2, dtype=torch.int64))
    assert len(batch) == 0 and batch.logits(slice(None)).shape == (0, 60)


def test_references_count_rows_and_name_the_document_in_the_upper_bits() -> None:
    assert references_of(3, 4).tolist() == [3 << 32, (3 << 32) + 1, (3 << 32) + 2, -1]
    assert references_of(0, 1).tolist() == [-1]
    assert references_of(1 << 28, 2).tolist() == [1 << 60, -1]


# --- attach -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, np.ndarray.tolist], ids=["array", "tensor", "list"])
def test_references_of_a_batch_are_those_of_its_examples(convert: Callable[[Any], Any], file: TextFile) -> None:
    attach, documents = TextLabels(file.path).attach, file.documents[:6]
    whole = attach({"input_ids": [convert(tokens) for tokens in documents], "text": [""] * 6})
    alone = [attach({"input_ids": convert(tokens), "text": ""}) for tokens in documents]
    assert list(whole) == list(alone[0]) == [COLUMN]
    for own, reference in zip(alone, whole[COLUMN], strict=True):
        assert own[COLUMN].dtype == np.int64
        np.testing.assert_array_equal(own[COLUMN], reference)


def test_tokens_that_the_attention_mask_excludes_have_no_label(file: TextFile) -> None:
    attach, documents = TextLabels(file.path).attach, file.documents[1:3]
    plain = [attach({"input_ids": tokens})[COLUMN] for tokens in documents]
    padded = {
        "input_ids": [[0, 0, *documents[0]], [*documents[1], 0]],
        "attention_mask": [[0, 0, *[1] * len(documents[0])], [*[1] * len(documents[1]), 0]],
    }
    references = attach(padded)[COLUMN]
    np.testing.assert_array_equal(references[0], [-1, -1, *plain[0]])
    np.testing.assert_array_equal(references[1], [*plain[1], -1])


def test_an_empty_example_has_no_references(file: TextFile) -> None:
    assert list(TextLabels(file.path).attach({"input_ids": []})[COLUMN]) == []


class ListDataset:
    """Examples in a list, with the part of `datasets.Dataset` that is used here."""

    def __init__(self, examples: list[Mapping[str, Any]]) -> None:
        self.examples = examples

    @property
    def column_names(self) -> list[str]:
        return list(self.examples[0])

    def with_format(self, _: str, columns: list[str]) -> "ListDataset":
        return ListDataset([{name: np.asarray(example[name]) for name in columns} for example in self.examples])

    def map(self, function: Callable[[Mapping[str, Any]], dict[str, Any]], num_proc: int) -> "ListDataset":
        with ProcessPoolExecutor(num_proc, get_context("fork")) as pool:
            added = pool.map(function, self.examples)
            return ListDataset([{**example, **new} for example, new in zip(self.examples, added, strict=True)])

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.examples)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.examples[index]


def test_a_dataset_is_mapped_by_several_processes_and_serves_as_the_corpus(file: TextFile) -> None:
    dataset = ListDataset([{"text": "", "input_ids": tokens.tolist()} for tokens in file.documents])
    labels = TextLabels(file.path, corpus=dataset)
    mapped = dataset.map(labels.attach, num_proc=2)
    for example, references in zip(mapped, attached(labels, file.documents), strict=True):
        np.testing.assert_array_equal(example[COLUMN], references)
    batch = labels.at(packed([example[COLUMN] for example in mapped], -1))
    torch.testing.assert_close(batch.logits(slice(None)), torch.cat(file.logits), rtol=1e-4, atol=1e-4)


def test_attach_pickles_to_the_same_bytes_for_the_same_file_and_refuses_a_replaced_one(file: TextFile, tmp_path: Path) -> None:
    path = Path(shutil.copy(file.path, tmp_path / "labels.vql"))
    pickled = pickle.dumps(TextLabels(path, corpus=file.documents).attach)
    assert pickled == pickle.dumps(TextLabels(path).attach) and len(pickled) < 400 + len(str(path))
    np.testing.assert_array_equal(
        pickle.loads(pickled)({"input_ids": file.documents[1]})[COLUMN], attached(TextLabels(path), file.documents)[1]
    )
    path.unlink()
    write(tmp_path, prior=None)
    assert pickle.dumps(TextLabels(path).attach) != pickled
    with pytest.raises(UsageError, match="replaced"):
        pickle.loads(pickled)


@pytest.mark.parametrize("change", [lambda tokens: tokens[:-1], lambda tokens: tokens[1:], lambda tokens: np.append(tokens, 0)])
def test_a_shortened_or_other_document_is_refused(change: Callable[[NDArray[np.int64]], NDArray[np.int64]], file: TextFile) -> None:
    tokens, attach = change(file.documents[2]), TextLabels(file.path).attach
    message = rf"labels\.vql: has no document with these {len(tokens)} tokens, \[.*\]; its \d+ documents have 2 to 20 tokens each\. .* tokenize without"
    with pytest.raises(UnknownDocument, match=message):
        attach({"input_ids": tokens})
    with pytest.raises(UnknownDocument, match=message):
        attach({"input_ids": [file.documents[1], tokens]})


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"text": "a"}, r"the example has the columns \['text'\], and no input_ids: tokenize the text before labels are attached"),
        ({"input_ids": [0.5, 1]}, r"tokens are float64 \[2\]; they must be a list of token ids, one document"),
        ({"input_ids": [1, 2], "attention_mask": [1]}, "attention_mask has 1 numbers for 2 tokens"),
    ],
)
def test_an_example_without_token_ids_is_refused(example: dict[str, Any], message: str, file: TextFile) -> None:
    with pytest.raises(UsageError, match=message):
        TextLabels(file.path).attach(example)


# --- refusals of references and corpora -------------------------------------------------------------------------------


def test_a_missing_corpus_is_refused_with_its_remedy(file: TextFile) -> None:
    labels = TextLabels(file.path)
    message = (
        r"labels\.vql: its labels depend on the tokens around them, 4 on each side, .*; open the file with corpus=, the dataset or"
    )
    with pytest.raises(UsageError, match=message):
        labels.at(packed(attached(labels, file.documents), -1))


@pytest.mark.parametrize("value", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3)])
def test_references_of_another_shape_or_type_are_refused(value: Tensor, file: TextFile) -> None:
    with pytest.raises(
        UsageError, match=r"references are torch\..*; they must be torch\.int64 \[batch, length\], the column vqlabel"
    ):
        file.open().at(value)


@pytest.mark.parametrize(("document", "row"), [(0, 19), (0, 1 << 31), (1000, 0), (1 << 28, 3)])
def test_a_reference_to_a_label_that_the_file_does_not_have_is_refused(document: int, row: int, file: TextFile) -> None:
    message = rf"labels\.vql: has no row {row} of document {document}, only \d+ documents; the column vqlabel is of another file"
    with pytest.raises(UsageError, match=message):
        file.open().at(torch.tensor([[0, document << 32 | row]]))


def test_a_column_that_was_moved_against_its_tokens_is_refused(file: TextFile) -> None:
    labels, tokens = file.open(), torch.from_numpy(file.documents[1])[None]
    references = torch.from_numpy(attached(labels, file.documents)[1])[None]
    with pytest.raises(
        UsageError, match=r"token \d+ at \(0, \d+\) of the batch refers to a label after token \d+; .* by labels\.collator"
    ):
        labels.at(references, tokens.roll(1, 1))
    with pytest.raises(UsageError, match=r"tokens have shape \[1, 2\]; they must be of the references' shape, \[1, 18\]"):
        labels.at(references, tokens[:, :2])


def test_a_corpus_without_the_document_is_refused(file: TextFile) -> None:
    labels = TextLabels(file.path, corpus=[tokens[:-1] for tokens in file.documents])
    message = r"corpus has 30 documents, and none is document 0 of .*labels\.vql, of 18 tokens; pass the documents as labels\.attach found"
    with pytest.raises(UnknownDocument, match=message):
        labels.at(torch.tensor([[0]]))


def test_a_corpus_that_changes_is_refused(file: TextFile) -> None:
    corpus = list(file.documents)
    labels = TextLabels(file.path, corpus=corpus)
    labels.at(torch.tensor([[0]]))
    corpus.reverse()
    with pytest.raises(UsageError, match=r"corpus has other tokens at 1 than when it was first read; do not change it"):
        labels.at(torch.tensor([[0]]))


@pytest.mark.parametrize("corpus", ["corpus.jsonl", {"train": []}, iter([]), Path("corpus")])
def test_a_corpus_that_cannot_be_read_by_index_is_refused(corpus: object, file: TextFile) -> None:
    with pytest.raises(UsageError, match=r"corpus is of type \w+; it must be a datasets\.Dataset with input_ids, or a list with"):
        TextLabels(file.path, corpus=corpus)


def test_a_corpus_that_is_not_tokenized_is_refused(file: TextFile) -> None:
    with pytest.raises(UsageError, match=r"corpus has the columns \['text'\], and no input_ids: tokenize it first"):
        TextLabels(file.path, corpus=ListDataset([{"text": ""}]))
    with pytest.raises(UsageError, match=r"the example has the columns \['text'\], and no input_ids: tokenize the text first"):
        TextLabels(file.path, corpus=[{"text": ""}]).at(torch.tensor([[0]]))
