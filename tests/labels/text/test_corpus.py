"""Corpora: the same documents from every kind of file, each read alone; broken ones are refused with their place."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from text_dumps import write_lines, write_table

from vqlabel.errors import BadInput, MissingExtra, NoSuchFile, UsageError
from vqlabel.labels.text.corpus.corpus import Corpus
from vqlabel.labels.text.corpus.open import open_corpus
from vqlabel.labels.text.documents import token_hash
from vqlabel.labels.text.tokenizer import tokenizer_identity

DOCUMENTS = [[5, 7, 9], [2], [8, 8, 1, 0, 31], [5, 7, 9], [40_000, 3]]
FLAT, ENDS = np.concatenate([np.array(document) for document in DOCUMENTS]), np.cumsum([0, *map(len, DOCUMENTS)])


def offsets(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "corpus.npy", FLAT.astype(">u4"))
        np.save(folder / name, ENDS.astype(np.uint64))
        return folder / "corpus.npy"

    return write


def lines(name: str) -> Callable[[Path], Path]:
    return lambda folder: write_lines(folder / "corpus.jsonl", ["", *({"id": 1, name: document} for document in DOCUMENTS), " "])


def masked(folder: Path) -> Path:
    """Padded on the left, on the right and on both sides."""
    rows = []
    for at, document in enumerate(DOCUMENTS):
        left, right = at % 3, 2 * (at % 2)
        rows.append({
            "input_ids": [0] * left + document + [0] * right, "attention_mask": [0] * left + [1] * len(document) + [0] * right
        })  # fmt: skip
    return write_lines(folder / "corpus.jsonl", rows)


def table(suffix: str, mask: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        columns: dict[str, Any] = {"input_ids": [[*document, 0] for document in DOCUMENTS] if mask else DOCUMENTS}
        if mask:
            columns["attention_mask"] = [[1] * len(document) + [0] for document in DOCUMENTS]
        return write_table(folder / f"corpus{suffix}", columns)

    return write


def shards(folder: Path) -> Path:
    """Files in numeric order; others are not read."""
    write_lines(folder / "part-9.jsonl", [{"tokens": document} for document in DOCUMENTS[:2]])
    write_lines(folder / "part-10.jsonl", [{"tokens": document} for document in DOCUMENTS[2:]])
    (folder / "README.md").write_text("about")
    (folder / ".part-11.jsonl").write_text("hidden")
    return folder


def tables(folder: Path) -> Path:
    for number, part in enumerate((DOCUMENTS[:3], DOCUMENTS[3:])):
        write_table(folder / f"part-{number}.parquet", {"token_ids": part})
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "corpus.offsets.npy": offsets("corpus.offsets.npy"),
    "offsets.npy": offsets("offsets.npy"),
    "input_ids": lines("input_ids"),
    "token_ids": lines("token_ids"),
    "tokens": lines("tokens"),
    "masked": masked,
    "parquet": table(".parquet"),
    "parquet, masked": table(".parquet", mask=True),
    "arrow": table(".arrow"),
    "folder of jsonl": shards,
    "folder of parquet": tables,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_documents_which_are_read_in_any_order(form: str, tmp_path: Path) -> None:
    corpus = open_corpus(FORMS[form](tmp_path))
    assert len(corpus) == 5 and corpus.lengths.tolist() == [3, 1, 5, 3, 2]
    for index in (4, 0, 3, 2, 1, 2):
        tokens = corpus.read(index)
        assert tokens.dtype == np.int64 and tokens.tolist() == DOCUMENTS[index]
        assert corpus.hash(index) == token_hash(np.array(DOCUMENTS[index]))
    assert corpus.distinct.tolist() == [0, 2, 4]


def test_arrays_have_a_document_a_row_or_are_cut(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.uint16)
    np.save(tmp_path / "rows.npy", rows.reshape(3, 4))
    np.save(tmp_path / "flat.npy", rows)
    assert [open_corpus(tmp_path / "rows.npy").read(index).tolist() for index in (0, 2)] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    cut = open_corpus(tmp_path / "flat.npy", document_length=5)
    assert [cut.read(index).tolist() for index in range(len(cut))] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert open_corpus(tmp_path / "flat.npy", document_length=12).lengths.tolist() == [12]


def test_the_sum_of_a_corpus_is_of_its_documents_in_order(tmp_path: Path) -> None:
    def sha256(documents: Sequence[Sequence[int]]) -> str:
        return open_corpus(write_lines(tmp_path / "a.jsonl", [{"tokens": list(document)} for document in documents])).sha256

    first = sha256([[1, 2], [3]])
    assert first == sha256([[1, 2], [3]])
    assert len({first, sha256([[3], [1, 2]]), sha256([[1], [2, 3]]), sha256([[1, 2, 3]]), sha256([[1, 2], [4]])}) == 5


def test_a_line_is_read_without_the_others(tmp_path: Path) -> None:
    path = lines("tokens")(tmp_path)
    corpus = open_corpus(path)
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line if number == 3 else "x" * len(line) for number, line in enumerate(text)))
    assert corpus.read(2).tolist() == DOCUMENTS[2]
    with pytest.raises(BadInput, match=r"corpus\.jsonl, line 3: is not JSON"):
        corpus.read(1)


@pytest.mark.parametrize("form", ["offsets.npy", "tokens"])
def test_a_corpus_that_changes_after_it_was_opened_is_refused(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path)
    corpus = open_corpus(path)
    if path.suffix == ".npy":
        np.save(path, FLAT.astype(">u4") + 1)
    else:
        path.write_text(path.read_text().replace("31", "30"))
    with pytest.raises(BadInput, match=r"corpus\.\w+, (document|line) [24]: has other tokens than when the corpus was opened"):
        corpus.read(2)


def test_the_vocabulary_is_checked_with_the_place_of_the_largest_id(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"tokens": tokens} for tokens in ([1, 2], [9, 3], [1, 9])])
    corpus = open_corpus(path)
    corpus.check_vocabulary(10, "the head")
    with pytest.raises(
        BadInput, match=r"a\.jsonl, line 2: token 9 is outside 0\.\.8, the vocabulary of the head; tokenize .* with the teacher's"
    ):
        corpus.check_vocabulary(9, "the head")


# --- texts ------------------------------------------------------------------------------------------------------------

VOCABULARY = {"<s>": 0, "a": 1, "b": 2, "c": 3}


class FakeTokenizer:
    """One id for each letter, behind one for the beginning; tokenizer.json tells to cut and pad."""

    def __init__(self) -> None:
        self.length: int | None = 2

    @classmethod
    def from_file(cls, path: str) -> "FakeTokenizer":
        if "old" in Path(path).read_text():
            raise Exception("missing field `model` at line 1")  # as the library does
        return cls()

    def no_truncation(self) -> None:
        self.length = None

    def no_padding(self) -> None:
        assert self.length is None

    def encode(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(ids=[0, *(VOCABULARY[letter] for letter in text)][: self.length])


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=FakeTokenizer))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}}))
    return tmp_path / "tokenizer.json"


TEXTS, IDS = ["abc", "", "ccba"], [[0, 1, 2, 3], [0], [0, 3, 3, 2, 1]]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_texts_are_tokenized_whole_and_the_tokenizer_is_recorded(suffix: str, tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / f"texts{suffix}"
    if suffix == ".jsonl":
        write_lines(path, [{"text": text} for text in TEXTS])
    else:
        write_table(path, {"text": TEXTS})
    corpus = open_corpus(path, tokenizer=tokenizer)
    assert [corpus.read(index).tolist() for index in (2, 0, 1)] == [IDS[2], IDS[0], IDS[1]]
    assert corpus.tokenizer == tokenizer_identity(tokenizer)
    with pytest.raises(
        UsageError, match=r"texts\.\w+, (line 1|row 0): has a text .*pass the teacher's tokenizer\.json .* --tokenizer"
    ):
        open_corpus(path)


def test_a_folder_of_a_tokenizer_is_read_by_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Auto:
        @staticmethod
        def from_pretrained(path: str, local_files_only: bool) -> "Auto":
            assert local_files_only
            if not (Path(path) / "tokenizer_config.json").exists():
                raise OSError(f"Can't load tokenizer for '{path}'.")
            return Auto()

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [0, *(VOCABULARY[letter] for letter in text)]}

        def get_vocab(self) -> dict[str, int]:
            return VOCABULARY

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoTokenizer=Auto))
    path = write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(UsageError, match=r"transformers finds no tokenizer there \(Can't load tokenizer"):
        open_corpus(path, tokenizer=tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    corpus = open_corpus(path, tokenizer=tmp_path)
    assert corpus.read(2).tolist() == IDS[2]
    assert corpus.tokenizer["sha256"] == tokenizer_identity(Auto())["sha256"]


def test_a_tokenizer_that_is_missing_or_broken_is_refused(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [{"text": "a"}])
    with pytest.raises(NoSuchFile, match=r"gone: no such file or directory; pass a tokenizer\.json"):
        open_corpus(path, tokenizer=tmp_path / "gone")
    content = tokenizer.read_text()
    for broken, message in (("{}", "with a vocabulary"), (content.replace("}}", '}, "old": 1}'), r"\(missing field")):
        tokenizer.write_text(broken)
        with pytest.raises(BadInput, match=rf"tokenizer\.json: is not a tokenizer\.json {message}"):
            open_corpus(path, tokenizer=tokenizer)
    tokenizer.write_text(content)
    for name, extra, given in (("tokenizers", "text", tokenizer), ("transformers", "teachers", tmp_path)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=rf"needs {name}, .*'vqlabel\[{extra}\]'"):
            open_corpus(path, tokenizer=given)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"tokens": []}, "has no tokens; remove this document"),
        ({"tokens": [1, -100]}, r"token -100 is outside 0\.\.2147483647; a document has no padding and no masked labels"),
        ({"tokens": [1 << 31]}, r"token 2147483648 is outside 0\.\."),
        ({"tokens": [1, 2.5]}, r"tokens is \[1, 2\.5\]; it must be a list of integers"),
        ({"tokens": ["a"]}, r"tokens is \['a'\]; it must be a list of integers"),
        ({"tokens": [[1], [2, 3]]}, r"tokens is \[\[1\], \[2, 3\]\]; it must be a list of integers"),
        ({"tokens": 4}, "tokens is 4; it must be a list of integers"),
        ({"input_ids": [1]}, "has no tokens, which the first line has; all lines of a corpus are alike"),
        ('{"tokens": [1, 2', "is not JSON .*; the line is cut or damaged"),
        ("[1, 2]", r"is \[1, 2\]; a line must be a JSON object, such as"),
        ({"tokens": [1, 2], "attention_mask": [1]}, "1 numbers of attention_mask for 2 tokens"),
        ({"tokens": [1, 2, 3], "attention_mask": [1, 0, 1]}, "attention_mask is not 1 at tokens and 0 at padding on the ends"),
        ({"tokens": [1, 2], "attention_mask": [1, 2]}, "attention_mask is not 1 at tokens"),
        ({"tokens": [1, 2], "attention_mask": [0, 0]}, "has no tokens"),
    ],
    ids=range(14),
)
def test_a_broken_line_is_refused_with_its_place(line: Any, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"tokens": [1]}, "", line])
    with pytest.raises(BadInput, match=rf"a\.jsonl, line 3: {message}"):
        open_corpus(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": [1]}, r"has label; a document is a list of token ids in input_ids, token_ids or tokens, or a string in text"),
        ({"input_ids": [[1], []]}, r"row 1: has no tokens"),
        ({"input_ids": [[1.5]]}, "holds double; it must hold lists of integers|column 'input_ids' holds float64"),
        ({"text": [3]}, "row 0: column 'text' holds 3; it must hold a string"),
        ({"text": [None]}, "row 0: column 'text' holds None"),
    ],
    ids=range(5),
)
def test_a_broken_table_is_refused_with_its_place(content: Any, message: str, tokenizer: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", content)
    with pytest.raises(BadInput, match=rf"a\.parquet.*{message}"):
        open_corpus(path, tokenizer=tokenizer)


def save(folder: Path, array: NDArray[Any], ends: NDArray[Any] | None = None) -> Path:
    np.save(folder / "a.npy", array)
    if ends is not None:
        np.save(folder / "a.offsets.npy", ends)
    return folder / "a.npy"


@pytest.mark.parametrize(
    ("array", "ends", "length", "error", "message"),
    [
        (FLAT, None, None, UsageError, r"tell where each ends: --document-length N cuts .* or store their offsets \[D \+ 1\], from 0 to 14, in a\.offsets\.npy"),
        (FLAT, None, 1, UsageError, r"document_length is 1; it must be 2 or more"),
        (FLAT, ENDS, 4, UsageError, r"document_length is 4; it must be left out for \S*a\.npy: \S*a\.offsets\.npy has its documents"),
        (FLAT.reshape(2, 7), None, 4, UsageError, r"document_length is 4; it must be left out .*: it has documents of 7 tokens"),
        (FLAT, ENDS[1:], None, BadInput, r"a\.offsets\.npy: .* must ascend from 0 to 14, the tokens of \S*a\.npy"),
        (FLAT, ENDS[:-1], None, BadInput, r"must ascend from 0 to 14"),
        (FLAT, ENDS[[0, 2, 1, 5]], None, BadInput, r"must ascend from 0 to 14"),
        (FLAT, ENDS[[0, 2, 2, 5]], None, BadInput, r"a\.npy, document 1: has no tokens"),
        (FLAT, ENDS[None], None, BadInput, r"must ascend from 0 to 14"),
        (FLAT, ENDS * 1.0, None, BadInput, r"a\.offsets\.npy: .*F64 .*; token ids must be integers"),
        (FLAT * 1.0, None, 4, BadInput, r"a\.npy: .*F64 .*; token ids must be integers"),
        (FLAT > 3, None, 4, BadInput, r"token ids must be integers"),
        (FLAT.reshape(1, 2, 7), None, None, BadInput, r"token ids are \[n, L\], a document a row, or \[T\]"),
        (np.zeros((0, 4), int), None, None, BadInput, "contains no documents"),
        (np.zeros((4, 0), int), None, None, BadInput, "document 0: has no tokens"),
        (FLAT.reshape(2, 7) - 1, None, None, BadInput, r"a\.npy, document 1: token -1 is outside"),
    ],
    ids=range(16),
)  # fmt: skip
def test_a_broken_array_is_refused(
    array: NDArray[Any], ends: NDArray[Any] | None, length: int | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        open_corpus(save(tmp_path, array, ends), document_length=length)


def test_other_paths_are_refused_with_what_a_corpus_is(tmp_path: Path) -> None:
    forms = r"a \.npy, \.jsonl, \.parquet or \.arrow file, or a folder of such files"
    with pytest.raises(NoSuchFile, match=rf"gone: no such file or directory; a corpus is {forms}"):
        open_corpus(tmp_path / "gone")
    with pytest.raises(BadInput, match=rf"has no such file; a corpus is {forms}"):
        open_corpus(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(BadInput, match=r"a\.txt: is a text file, not a corpus"):
        open_corpus(tmp_path / "a.txt")
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b123")
    with pytest.raises(BadInput, match=r"a\.jsonl\.gz: is a gzip file, not a corpus; decompress it first"):
        open_corpus(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.bin").write_bytes(b"\x01\x02\x00")
    with pytest.raises(BadInput, match=rf"b\.bin: is no corpus; it must be {forms}"):
        open_corpus(tmp_path / "b.bin")
    write_lines(tmp_path / "a.jsonl", [{"tokens": [1]}])
    with pytest.raises(UsageError, match=r"document_length is 3; it must be left out for \.jsonl files, whose rows are documents"):
        open_corpus(tmp_path / "a.jsonl", document_length=3)
    np.save(tmp_path / "a.npy", FLAT)
    with pytest.raises(BadInput, match=r"has \.jsonl and \.npy files; keep those of one kind"):
        open_corpus(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadInput, match=r"empty\.jsonl: contains no documents; a corpus has at least one"):
        open_corpus(tmp_path / "empty.jsonl")


def test_a_file_is_closed_when_another_is_read(tmp_path: Path) -> None:
    closed: list[str] = []
    corpus = open_corpus(tables(tmp_path))
    for file in corpus._files:
        file.close = lambda file=file: closed.append(file.path.name)  # type: ignore[method-assign, misc]
    for index in (0, 1, 4, 3, 0):
        corpus.read(index)
    assert isinstance(corpus, Corpus) and closed == ["part-0.parquet", "part-1.parquet"]
