"""Laws of all layouts of text dumps: what was written is read, document by document, alone and in any order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from text_dumps import LAYOUTS, Dump

from vqlabel.errors import BadLabels, NoSuchFile, UsageError
from vqlabel.labels.sparse import SparseLabels, as_dense
from vqlabel.labels.text.layouts.registry import TEXT_LAYOUTS
from vqlabel.labels.text.open import open_text_labels
from vqlabel.labels.text.source import TextDocument, TextSource


def opened(dump: Dump) -> TextSource:
    return open_text_labels(dump.path, **dump.options)


def check_document(dump: Dump, index: int, document: TextDocument) -> None:
    """Arrays are read exactly; probabilities to the precision of their float32 logarithms."""
    assert document.tokens.dtype == np.int64
    assert document.tokens.tolist() == dump.tokens[index].tolist()
    rows = as_dense(document.rows)
    assert rows.shape == dump.rows[index].shape
    if isinstance(document.rows, SparseLabels):
        np.testing.assert_allclose(rows, dump.rows[index], rtol=2e-6)
    else:
        assert (rows == dump.rows[index]).all()


def test_a_dump_reads_back_to_the_tokens_and_rows_that_were_written(dump: Dump) -> None:
    source = opened(dump)
    assert len(source) == len(dump.tokens)
    for index, document in enumerate(source):
        check_document(dump, index, document)


def test_a_document_is_read_alone_and_in_any_order(dump: Dump) -> None:
    for index in reversed(range(len(dump.tokens))):
        check_document(dump, index, opened(dump).read(index))
    source = opened(dump)
    for index in (2, 0, 2, len(source) - 1, 1):
        check_document(dump, index, source.read(index))


def test_lengths_are_known_without_reading_a_row(dump: Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(dump)
    monkeypatch.setattr(type(source), "_load", None)
    assert source.lengths.tolist() == [len(ids) for ids in dump.tokens]


def test_the_width_domain_and_type_of_rows_are_as_declared(dump: Dump) -> None:
    source = opened(dump)
    for document in source:
        rows = document.rows
        if isinstance(rows, SparseLabels):
            assert (source.about.domain, rows.ids.shape[1], rows.classes) == ("topk", source.about.width, source.about.vocabulary)
            sums = rows.values.sum(1) + rows.others * rows.rest[:, 0]
            np.testing.assert_allclose(sums, 1, atol=1e-6)
        else:
            assert source.about.domain in ("hidden", "logits")
            assert rows.shape[1] == source.about.width
            assert rows.dtype == np.dtype("f2" if source.about.dtype == "F16" else "f4")
    assert source.about.layout in TEXT_LAYOUTS


def test_a_token_outside_the_vocabulary_is_refused_with_the_name_of_its_document(dump: Dump) -> None:
    source = opened(dump)
    source.about = replace(source.about, vocabulary=5)
    with pytest.raises(BadLabels, match=rf"{dump.path.name}.*(token \d+ is outside 0\.\.4, the vocabulary)"):
        list(source)


def test_a_document_that_changed_since_the_dump_was_opened_is_refused(dump: Dump) -> None:
    source = opened(dump)
    lengths = source.lengths.copy()
    lengths[1] += 1
    source.__dict__["lengths"] = lengths
    source.read(0)
    with pytest.raises(BadLabels, match=r": \d+ tokens; it had \d+ when the dump was opened: it was changed since"):
        source.read(1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_option_of_another_layout_is_refused(layout: str, tmp_path: Path) -> None:
    dump = LAYOUTS[layout](tmp_path)
    name = opened(dump).about.layout
    for option, value in {"layer": 0, "array": "x", "k": 2, "rest": "zero", "compression": "a.yaml"}.items():
        if option not in TEXT_LAYOUTS[name].options:
            with pytest.raises(UsageError, match=rf"{option} is .*must be left out: it does not apply to the layout {name}"):
                open_text_labels(dump.path, **{**dump.options, option: value})


def test_a_path_that_is_no_dump_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match=r"nowhere: no such file or directory; pass a folder of \.safetensors files"):
        open_text_labels(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"layout is 'fkd'; it must be one of hidden, arrays, distillkit, prompt_logprobs"):
        open_text_labels(tmp_path, "fkd")
    with pytest.raises(BadLabels, match="is not a dump of a language model; it must be a folder of"):
        open_text_labels(tmp_path)
    for name, remedy in (
        ("a.ckpt", "save their tensors with safetensors"),
        ("a.safetensors.zst", "decompress them first: zstd -d"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(BadLabels, match=rf"for {Path(name).suffix} files: {remedy}"):
            open_text_labels(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadLabels, match=r"contains config\.json, so it is a model, not a dump of its outputs"):
        open_text_labels(tmp_path)


def test_a_folder_above_a_dump_names_the_dump(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    LAYOUTS["hidden"](tmp_path / "run")
    with pytest.raises(BadLabels, match=r"the dump is .*/run: pass that folder"):
        open_text_labels(tmp_path)


def test_an_empty_dump_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(BadLabels, match=r"a\.jsonl: contains no documents; a dump has at least one"):
        open_text_labels(tmp_path / "a.jsonl", vocab=5)
