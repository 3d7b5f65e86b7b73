"""A `.vql` of documents: every document is found by its tokens and read alone; damage is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forge import Forge
from numpy.typing import NDArray
from paths import GOLDEN

from tests.text_corpus import random_codec, small_config, small_split
from vqlabel.container import verify
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels.text.documents import token_hash
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import TextVqlFile
from vqlabel.vql.text.streams import join_streams, run_lengths, split_streams
from vqlabel.vql.text.writer import TextVqlWriter

LABEL = {"classes": 60, "domain": "hidden", "dtype": "F16"}
TEXT = {"tokenizer": {}, "teacher": {}, "head": {}, "shift": 1}


def encoded() -> list[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """Tokens and fields of all documents that have labels."""
    codec, split = random_codec(price=0.01), small_split(60)
    fields = codec.encode(split.labels, split.documents).numpy().view(np.uint32)
    documents = [split.documents.take(np.array([i])) for i in range(len(split.documents))]
    return [(one.tokens, fields[rows]) for one, rows in documents if len(rows)]


def write(path: Path, documents: list[tuple[NDArray[np.int64], NDArray[np.uint32]]]) -> Path:
    codec = random_codec(price=0.01)
    with TextVqlWriter(path, codec.config) as writer:
        for tokens, fields in documents:
            writer.add(token_hash(tokens), fields)
        writer.finish(LABEL, TEXT, {name: tensor.numpy() for name, tensor in codec.decoder_tensors().items()})
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "labels.vql", encoded())


def test_every_document_is_found_by_its_tokens_and_read_alone(file: Path) -> None:
    opened, documents = TextVqlFile(file), encoded()
    assert len(opened.documents) == len(documents)
    for tokens, fields in documents[::-1]:
        index = opened.documents.find(token_hash(tokens))
        assert index is not None
        np.testing.assert_array_equal(opened.fields(index), fields)
    verify(file)


def test_documents_are_found_in_any_order_of_the_file(tmp_path: Path) -> None:
    documents = encoded()
    shuffled = TextVqlFile(write(tmp_path / "shuffled.vql", documents[::-1]))
    for tokens, fields in documents:
        index = shuffled.documents.find(token_hash(tokens))
        assert index is not None
        np.testing.assert_array_equal(shuffled.fields(index), fields)


@pytest.mark.parametrize("change", ["shortened", "longer", "another token"])
def test_other_tokens_are_not_found(file: Path, change: str) -> None:
    tokens = encoded()[3][0]
    other = {
        "shortened": tokens[:-1],
        "longer": np.append(tokens, 1),
        "another token": np.append(tokens[:-1], (tokens[-1] + 1) % 60),
    }
    assert TextVqlFile(file).documents.find(token_hash(other[change])) is None


def test_the_hash_of_tokens_is_the_same_for_every_integer_type_and_on_every_machine() -> None:
    tokens = np.array([1, 2, 70_000])
    assert token_hash(tokens).hex() == token_hash(tokens.astype(np.uint32)).hex() == "64add97e97a8e23d60a4ea405258b5c1"


def test_a_document_is_read_by_chunks_and_not_by_the_whole_file(tmp_path: Path) -> None:
    documents = [(np.array([i, i + 1]), fields[:1].repeat(3000, 0)) for i, (_, fields) in enumerate(encoded()[:20])]
    opened = TextVqlFile(write(tmp_path / "large.vql", documents))
    read, original = list[tuple[str, int]](), opened.container.read_chunk
    opened.container.read_chunk = lambda name, number: (read.append((name, number)), original(name, number))[1]  # type: ignore[method-assign]
    np.testing.assert_array_equal(opened.fields(17), documents[17][1])
    assert {number for name, number in read if name == "counts"} <= {17 * 3000 // 4096, 18 * 3000 // 4096}


def test_fields_are_split_into_streams_and_joined_again() -> None:
    config = small_config()
    for _, fields in encoded():
        streams = split_streams(config, fields)
        np.testing.assert_array_equal(join_streams(config, streams), fields)
        lengths = run_lengths(config, streams["counts"]).sum(0)
        assert [len(streams[run.stream]) for run in config.runs] == lengths.tolist()


def test_a_file_of_images_and_one_of_documents_are_each_refused_by_the_other_s_reader(file: Path) -> None:
    with pytest.raises(UsageError, match="has labels of images, not of documents"):
        TextVqlFile(GOLDEN / "alone.vql")
    with pytest.raises(UsageError, match="has labels of documents, not of images"):
        VqlFile(file)


def forged_table(forge: Forge) -> None:
    forge.put("documents", np.zeros((3, 4), np.uint32), [32] * 4)


def forged_lengths(forge: Forge) -> None:
    forge.put("documents", forge.rows("documents") * [1, 1, 1, 1, 2], [32] * 5)


def forged_sums(forge: Forge) -> None:
    forge.tensor("counts.sums", "U64", [1, 2], np.array([[5, 0]], "<u8").tobytes())


def forged_shape(forge: Forge) -> None:
    forge.tensor("counts.sums", "U64", [2, 2], np.zeros((2, 2), "<u8").tobytes())


def forged_shift(forge: Forge) -> None:
    forge.metadata["vql.text"]["shift"] = 0


def forged_vocabulary(forge: Forge) -> None:
    forge.metadata["vql.label"]["classes"] = 61


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forged_table, "fields are not 5 of 32 bits"),
        (forged_lengths, "labels, the file"),
        (forged_sums, "does not ascend from 0"),
        (forged_shape, r"must be U64 \[1, 2\]"),
        (forged_shift, r"row t is of token t \+ 0; this vqlabel reads a shift of 1"),
        (forged_vocabulary, "the codec's configuration"),
    ],
)
def test_a_forged_file_is_refused_when_it_is_opened(
    file: Path, tmp_path: Path, change: Callable[[Forge], None], message: str
) -> None:
    forge = Forge(file)
    change(forge)
    with pytest.raises(BadContainer, match=message):
        TextVqlFile(forge.write(tmp_path / "forged.vql"))


def read_all(file: TextVqlFile) -> None:
    for index in range(len(file.documents)):
        file.fields(index)


def forged_count(forge: Forge) -> None:
    forge.put("counts", np.full_like(forge.rows("counts"), 3), [2, 2])


def forged_id(forge: Forge) -> None:
    ids = forge.rows("ids")
    ids[:, 0] = 63
    forge.put("ids", ids, [6, 5])


@pytest.mark.parametrize(
    ("change", "message"), [(forged_count, "rows of"), (forged_id, "a code or count of 63 is outside 0..59")], ids=["counts", "ids"]
)
def test_a_forged_document_is_refused_when_it_is_read(
    file: Path, tmp_path: Path, change: Callable[[Forge], None], message: str
) -> None:
    forge = Forge(file)
    change(forge)
    opened = TextVqlFile(forge.write(tmp_path / "forged.vql"))
    with pytest.raises(BadContainer, match=message):
        read_all(opened)
