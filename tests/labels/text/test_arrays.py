"""Arrays of tokens and rows: lengths, offsets and masks; .npy and .npz files that cannot be read by documents."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_dumps import LENGTHS, D, draw, flat_npy, offsets_npz, padded_safetensors

from vqlabel.errors import BadLabels
from vqlabel.labels.text.open import open_text_labels

TOKENS, ROWS = np.arange(12) % 7, np.arange(12 * D, dtype=np.float32).reshape(12, D)
STACKED = {"tokens": TOKENS.reshape(3, 4), "hidden": ROWS.reshape(3, 4, D)}


def write(folder: Path, **arrays: Any) -> Path:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array))
    return folder


def test_flat_tokens_without_lengths_are_one_document_with_a_note(tmp_path: Path) -> None:
    source = open_text_labels(write(tmp_path, tokens=TOKENS, hidden=ROWS))
    assert source.notes == [f"{tmp_path}: its 12 tokens are read as one document; if they are several, store the array lengths"]
    assert (source.lengths.tolist(), source.read(0).rows.shape) == ([12], (11, D))


@pytest.mark.parametrize("name", ["offsets", "document_offsets", "cu_seqlens"])
def test_offsets_are_those_of_the_first_tokens_and_of_the_end(name: str, tmp_path: Path) -> None:
    source = open_text_labels(write(tmp_path, tokens=TOKENS, hidden=ROWS, **{name: [0, 5, 6, 12]}))
    assert source.lengths.tolist() == [5, 1, 6]
    assert (source.read(2).rows == ROWS[6:11]).all()


def test_rows_of_last_tokens_may_be_left_out(tmp_path: Path) -> None:
    source = open_text_labels(write(tmp_path, tokens=TOKENS, hidden=ROWS[:9], lengths=[5, 1, 6]))
    assert (source.read(2).rows == ROWS[4:9]).all()


def test_padded_sequences_have_lengths_or_a_mask(tmp_path: Path) -> None:
    source = open_text_labels(write(tmp_path, **STACKED, lengths=[4, 1, 3]))
    assert [document.tokens.tolist() for document in source] == [[0, 1, 2, 3], [4], [1, 2, 3]]
    assert (source.read(2).rows == ROWS[8:10]).all()
    (tmp_path / "lengths.npy").unlink()
    source = open_text_labels(write(tmp_path, **STACKED, attention_mask=[[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]]))
    assert [document.tokens.tolist() for document in source] == [[0, 1, 2, 3], [5, 6], [4]]
    assert (source.read(1).rows == ROWS[5:6]).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"lengths": [5, 6]}, "the lengths of 2 documents sum to 11, but there are 12 tokens"),
        ({"lengths": [12, 0]}, r"document 1 has 0 tokens; it must have 1\.\.12"),
        ({"lengths": [10, -2, 4]}, "document 1 has -2 tokens"),
        ({"lengths": [[12]]}, r"lengths I64 \[1, 1\]; lengths and offsets of documents must be integers"),
        ({"lengths": [12.0]}, r"lengths F64 \[1\]; lengths and offsets of documents must be integers"),
        ({"lengths": [12], "document_lengths": [12]}, "several of its arrays may be the lengths"),
        ({"offsets": [5, 12]}, r"offsets I64 \[2\] begins with 5; offsets of documents begin with 0 and end with T"),
        ({"offsets": [0, 13, 12]}, "document 0 has 13 tokens"),
        ({"offsets": np.empty(0, int)}, r"offsets I64 \[0\] begins with nothing"),
        ({**STACKED, "lengths": [4, 4]}, r"2 lengths do not fit tokens I64 \[3, 4\]; there must be one for each document"),
        ({**STACKED, "lengths": [4, 5, 4]}, r"document 1 has 5 tokens; it must have 1\.\.4"),
        (
            {**STACKED, "attention_mask": [[1, 0, 1, 1]] * 3},
            "the mask of document 0 has padding between tokens; only its ends may be padded",
        ),
        ({**STACKED, "attention_mask": [[1] * 3] * 3}, r"attention_mask I64 \[3, 3\] does not fit tokens I64 \[3, 4\]"),
        ({**STACKED, "attention_mask": [[1] * 4, [0] * 4, [1] * 4]}, "document 1 has 0 tokens"),
        ({"hidden": ROWS[:10], "lengths": [5, 1, 6]}, r"tokens I64 \[12\] and hidden F32 \[10, 6\] do not fit"),
    ],
    ids=range(15),
)
def test_lengths_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, **{"tokens": TOKENS, "hidden": ROWS, **arrays})
    with pytest.raises(BadLabels, match=f"{tmp_path}: {message}"):
        open_text_labels(tmp_path)


def test_bfloat16_of_numpy_is_read_exactly(tmp_path: Path) -> None:
    bits = (ROWS.view(np.uint32) >> 16).astype(np.uint16)
    write(tmp_path, tokens=TOKENS, hidden=bits.view("V2"))
    source = open_text_labels(tmp_path)
    assert source.about.dtype == "BF16"
    assert (source.read(0).rows == (bits.astype(np.uint32) << 16).view(np.float32)[:-1]).all()


def test_a_file_that_cannot_be_read_by_rows_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", tokens=TOKENS, hidden=ROWS)
    with pytest.raises(BadLabels, match=r"a\.npz: tokens\.npy is compressed, .*; save it with np\.savez"):
        open_text_labels(tmp_path / "a.npz")
    write(tmp_path, tokens=TOKENS, hidden=np.asfortranarray(ROWS))
    with pytest.raises(
        BadLabels, match=r"hidden\.npy: hidden F32 \[12, 6\] is in column-major order; save it with np\.ascontiguousarray"
    ):
        open_text_labels(tmp_path)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, tokens=TOKENS)
    np.save(tmp_path / "hidden.npy", np.array([{}] * 12, object), allow_pickle=True)
    with pytest.raises(BadLabels, match=r"hidden object \[12\]; rows must be F16, BF16, F32"):
        open_text_labels(tmp_path)


@pytest.mark.parametrize("name", ["hidden.npy", "tokens.npy", "dump.npz", "batch.safetensors"])
def test_a_truncated_file_is_refused_at_every_length(name: str, tmp_path: Path) -> None:
    dump = {"dump.npz": offsets_npz, "batch.safetensors": padded_safetensors}.get(name, flat_npy)(tmp_path)
    data = (tmp_path / name).read_bytes()
    for size in range(0, len(data) - 1, max(1, len(data) // 25)):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(BadLabels, match=name.partition(".")[0]):
            open_text_labels(dump.path)


def test_a_header_that_declares_more_than_its_file_holds_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tokens=TOKENS, hidden=ROWS)
    data = (tmp_path / "hidden.npy").read_bytes()
    (tmp_path / "hidden.npy").write_bytes(data.replace(b"(12, 6), }            ", b"(12000000000000, 6), }"))
    with pytest.raises(
        BadLabels, match=r"hidden\.npy: hidden F32 \[12000000000000, 6\] needs \d+ bytes, but 288 are stored; truncated or forged"
    ):
        open_text_labels(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("tokens.npy", (tmp_path / "tokens.npy").read_bytes())
        archive.writestr("hidden.npy", data[:-40])
    with pytest.raises(BadLabels, match=r"a\.npz: hidden F32 \[12, 6\] needs 288 bytes, but 248 are stored; truncated or forged"):
        open_text_labels(tmp_path / "a.npz")


def test_a_folder_without_rows_or_tokens_is_refused(tmp_path: Path) -> None:
    write(tmp_path, tokens=TOKENS)
    with pytest.raises(BadLabels, match=r"contains tokens I64 \[12\], but neither hidden states"):
        open_text_labels(tmp_path)
    (tmp_path / "tokens.npy").unlink()
    with pytest.raises(BadLabels, match=r"contains no \.npy file; a dump has tokens\.npy, and hidden\.npy or logits\.npy"):
        open_text_labels(tmp_path, "arrays")


def test_layers_of_arrays_can_be_chosen(tmp_path: Path) -> None:
    tokens, rows = draw(LENGTHS, 2 * D)
    stacked = np.concatenate(rows).reshape(-1, 2, D)
    source = open_text_labels(write(tmp_path, tokens=np.concatenate(tokens), hidden=stacked, lengths=LENGTHS), layer=0)
    assert (source.read(2).rows == rows[2][:-1, :D]).all()
