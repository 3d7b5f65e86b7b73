"""Folders of .safetensors files: layers, metadata, and files that do not belong together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_dumps import D, V, save, shards, vllm

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.text.open import open_text_labels


def test_the_last_of_several_layers_is_read_with_a_note(tmp_path: Path) -> None:
    dump = vllm(tmp_path, layers=3)
    source = open_text_labels(dump.path)
    assert (source.read(0).rows == dump.rows[0]).all()
    assert source.about.details == {"array": "hidden_states", "layer": 2, "layers": 3}
    assert source.notes == [f"{tmp_path}: holds 3 layers of hidden states; the last one is read, to choose another pass layer="]


@pytest.mark.parametrize(("layer", "number"), [(0, 0), (1, 1), (2, 2), (-1, 2), (-3, 0)])
def test_a_layer_can_be_chosen(layer: int, number: int, tmp_path: Path) -> None:
    dump = vllm(tmp_path, layers=3)
    source = open_text_labels(dump.path, layer=layer)
    assert (source.read(2).rows == (dump.rows[2] + number - 2).astype(np.float16)).all()
    assert (source.about.details["layer"], source.notes) == (number, [])
    assert {at: float(other.read(0).rows[0, 0]) for at, other in source.other_layers.items()} == {
        at: float((dump.rows[0] + at - 2).astype(np.float16)[0, 0]) for at in range(3) if at != number
    }


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for layer in (3, -4):
        with pytest.raises(UsageError, match=rf"layer is {layer}; it must be 0\.\.2: .* holds 3 layers"):
            open_text_labels(vllm(tmp_path, layers=3).path, layer=layer)
    with pytest.raises(UsageError, match=r"layer is 0; it must be left out: .* holds the hidden states of one layer"):
        open_text_labels(shards(tmp_path / "one").path, layer=0)


def test_files_are_read_in_numeric_order(tmp_path: Path) -> None:
    for at in (10, 9, 2):
        save(tmp_path / f"hs_{at}.safetensors", token_ids=np.array([at, 1]), hidden_states=np.zeros((2, D), np.float32))
    (tmp_path / "._hs_3.safetensors").touch()
    assert [int(document.tokens[0]) for document in open_text_labels(tmp_path)] == [2, 9, 10]


@pytest.mark.parametrize("tokens", ["token_ids", "input_ids", "tokens", "prompt_token_ids"])
@pytest.mark.parametrize("rows", ["hidden", "hidden_states", "last_hidden_state", "logits"])
def test_every_usual_name_is_known(tokens: str, rows: str, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", **{tokens: np.arange(4), rows: np.ones((3, D), np.float32), "other": np.ones(1)})
    source = open_text_labels(tmp_path)
    assert (source.about.domain, source.read(0).rows.shape) == ("logits" if rows == "logits" else "hidden", (3, D))


def test_metadata_become_properties_of_the_dump(tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    shards(
        tmp_path, metadata={"vocabulary": str(V), "tokenizer": digest, "teacher": "tiny", "teacher_sha256": digest, "shift": "1"}
    )
    about = open_text_labels(tmp_path).about
    assert (about.vocabulary, about.tokenizer) == (V, {"sha256": digest})
    assert about.teacher == {"name": "tiny", "sha256": digest}


def test_rows_may_be_as_many_as_tokens_or_one_less(tmp_path: Path) -> None:
    for extra in (0, 1):
        folder = tmp_path / str(extra)
        folder.mkdir()
        dump = shards(folder, extra=extra)
        assert all((open_text_labels(folder).read(at).rows == rows).all() for at, rows in enumerate(dump.rows))


def test_logits_of_a_padded_vocabulary_are_cut_with_a_note(tmp_path: Path) -> None:
    dump = shards(tmp_path, "logits", {})
    source = open_text_labels(tmp_path, vocab=V - 3)
    assert (source.about.vocabulary, source.about.width) == (V - 3, V - 3)
    assert source.notes == [f"{tmp_path}: logits of {V} ids are cut to the {V - 3} of the vocabulary; the others are padding"]
    at = next(at for at, ids in enumerate(dump.tokens) if ids.max() < V - 3)
    assert (source.read(at).rows == dump.rows[at][:, : V - 3]).all()
    with pytest.raises(BadLabels, match=rf"token \d+ is outside 0\.\.{V - 4}, the vocabulary"):
        list(source)
    with pytest.raises(UsageError, match=rf"vocab is {V + 1}; .* records a vocabulary of {V}: pass that of the dump's tokenizer"):
        open_text_labels(tmp_path, vocab=V + 1)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"shift": "2"}, "its metadata record a shift of '2'; row t must be of token t \\+ 1, a shift of 1"),
        ({"vocabulary": "-4"}, r"vocabulary in the metadata is '-4'; it must be a whole number, at least 2"),
        ({"vocabulary": "99999999999"}, "vocabulary in the metadata is '99999999999'; it must be a whole number"),
    ],
)
def test_metadata_that_contradict_the_rows_are_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    shards(tmp_path, metadata=metadata)
    with pytest.raises(BadLabels, match=rf"shard-00000\.safetensors: {message}"):
        open_text_labels(tmp_path)


def test_logits_narrower_than_the_recorded_vocabulary_are_refused(tmp_path: Path) -> None:
    shards(tmp_path, "logits", {"vocabulary": str(V + 1)})
    with pytest.raises(BadLabels, match=rf"vocabulary is {V + 1}; it must be at most {V}, the width of its logits"):
        open_text_labels(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        (
            {"hidden_states": torch.zeros(4, D + 1)},
            {},
            r"hidden_states F32 \[4, 7\] differs from .* in width or layers: a dump has one teacher",
        ),
        ({"hidden_states": torch.zeros(4, 2, D)}, {}, r"hidden_states F32 \[4, 2, 6\] differs from .* in width or layers"),
        (
            {"hidden_states": torch.zeros(4, D).half()},
            {},
            r"hidden_states F16 \[4, 6\] differs from hidden_states F32 \[4, 6\] in .*a\.safetensors",
        ),
        ({"logits": torch.zeros(4, D)}, {}, ".*; a dump has rows of one name and type"),
        ({}, {"teacher": "b"}, r"teacher is 'b', but 'a' in .*a\.safetensors: a dump has one"),
        ({}, {"teacher": "a", "vocabulary": "30"}, "vocabulary is '30', but 'None' in .*: a dump has one"),
    ],
    ids=range(6),
)
def test_files_of_different_dumps_are_refused(
    arrays: dict[str, Any], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    usual = {"token_ids": np.arange(4), "hidden_states": torch.zeros(4, D)}
    save(tmp_path / "a.safetensors", {"teacher": "a"}, **usual)
    rest = arrays or {"hidden_states": usual["hidden_states"]}
    save(tmp_path / "b.safetensors", metadata or {"teacher": "a"}, token_ids=usual["token_ids"], **rest)
    with pytest.raises(BadLabels, match=rf"b\.safetensors: {message}"):
        open_text_labels(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"token_ids": np.arange(4)}, r"contains token_ids I64 \[4\], but neither hidden states \(.*\) nor logits; name the array with array="),
        ({"hidden": torch.zeros(4, D)}, r"contains hidden F32 \[4, 6\], but no tokens; they are an array named token_ids or input_ids"),
        ({"tokens": np.arange(4), "token_ids": np.arange(4), "hidden": torch.zeros(4, D)}, r"several of its arrays may be the tokens: token_ids I64 \[4\], tokens"),
        ({"tokens": np.arange(4), "logits": torch.zeros(4, D), "hidden": torch.zeros(4, D)}, r"several of its arrays may be the rows: .*; name one with array="),
        ({"tokens": np.ones(4), "hidden": torch.zeros(4, D)}, r"tokens F64 \[4\]; tokens must be integers"),
        ({"tokens": np.arange(4), "hidden": torch.zeros(4, D).double()}, r"hidden F64 \[4, 6\]; rows must be F16, BF16, F32: convert them first"),
        ({"tokens": np.arange(4), "hidden": torch.zeros(4, D).to(torch.float8_e4m3fn)}, r"hidden F8_E4M3 \[4, 6\]; rows must be F16"),
        ({"tokens": np.arange(4), "hidden": torch.zeros(5, D)}, r"tokens I64 \[4\] and hidden F32 \[5, 6\] do not fit: L tokens have rows \[L, d\]"),
        ({"tokens": np.arange(4), "hidden": torch.zeros(2, D)}, ".* do not fit"),
        ({"tokens": np.arange(4), "hidden": torch.zeros(1, 4, D)}, ".* do not fit"),
        ({"tokens": np.arange(4), "hidden": torch.zeros(4)}, ".* do not fit"),
        ({"tokens": np.arange(0), "hidden": torch.zeros(0, D)}, ".* do not fit"),
        ({"tokens": np.zeros((2, 4), np.int64), "hidden": torch.zeros(3, 4, D)}, ".* do not fit"),
        ({"tokens": np.zeros((2, 4), np.int64), "hidden": torch.zeros(2, 2, D)}, ".* do not fit"),
    ],
    ids=range(14),
)  # fmt: skip
def test_arrays_that_are_no_labels_are_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", **arrays)
    with pytest.raises(BadLabels, match=rf"a\.safetensors: {message}"):
        open_text_labels(tmp_path)


def test_an_array_can_be_named(tmp_path: Path) -> None:
    save(
        tmp_path / "a.safetensors",
        tokens=np.arange(4),
        logits=torch.zeros(4, V),
        hidden=torch.ones(4, D),
        teacher_logits=torch.zeros(4, V),
    )
    for array, domain, width in (("hidden", "hidden", D), ("logits", "logits", V), ("teacher_logits", "logits", V)):
        about = open_text_labels(tmp_path, array=array).about
        assert (about.domain, about.width, about.details["array"]) == (domain, width, array)
    with pytest.raises(UsageError, match=r"array is 'x'; .* contains tokens I64 \[4\], hidden F32 \[4, 6\], .*: name one of them"):
        open_text_labels(tmp_path, array="x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_hidden_states_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    states = np.zeros((5, D), np.float16)
    states[2, 3] = value
    save(tmp_path / "a.safetensors", tokens=np.arange(5), hidden=states)
    with pytest.raises(
        BadLabels, match=r"a\.safetensors: row 2 holds NaN or Inf; the teacher's arithmetic overflowed: label this document again"
    ):
        open_text_labels(tmp_path).read(0)


@pytest.mark.parametrize("values", [[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf]], ids=str)
def test_logits_need_a_finite_one_and_may_have_minus_infinity(values: list[float], tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", tokens=np.zeros(3, np.int64), logits=np.array([[-np.inf, 0], values, [0, 0]], np.float32))
    with pytest.raises(BadLabels, match="row 1 holds NaN or Inf"):
        open_text_labels(tmp_path).read(0)
    save(tmp_path / "a.safetensors", tokens=np.zeros(3, np.int64), logits=np.array([[-np.inf, 0]] * 3, np.float32))
    assert len(open_text_labels(tmp_path).read(0).rows) == 2


def test_a_negative_or_huge_token_is_refused(tmp_path: Path) -> None:
    for token, kind in ((-1, np.int64), (1 << 31, np.int64), ((1 << 64) - 1, np.uint64)):
        np.savez(tmp_path / "a.npz", tokens=np.array([0, token], kind), hidden=np.zeros((2, D)).astype("f4"))
        with pytest.raises(BadLabels, match=r"a\.npz: token -?\d+ is outside 0\.\.2147483647, the vocabulary"):
            open_text_labels(tmp_path / "a.npz").read(0)


def test_reading_a_document_reads_only_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path)
    source, spans = open_text_labels(tmp_path), []
    kind = type(source._groups[0].rows)  # type: ignore[attr-defined]
    read = kind.read
    monkeypatch.setattr(
        kind, "read", lambda self, start, stop, joined=1: spans.append((self.name, start, stop)) or read(self, start, stop, joined)
    )
    source.read(4)
    assert spans == [("hidden", 7, 14), ("tokens", 8, 16)]
