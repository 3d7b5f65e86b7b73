"""`vqlabel demo --text`: the text, the dump, and the whole run in small."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from vqlabel import demo
from vqlabel.cli import app, show
from vqlabel.demo import run_text_demo, text
from vqlabel.demo.text import TextDemoSizes, TextSplits, dump_labels, hard_labels, label, train_teacher, with_shares
from vqlabel.demo.topics import TopicText, make_text
from vqlabel.errors import TargetExists, UsageError, VqlabelError

SMALL = TextDemoSizes(
    vocabulary=160, length=16, documents=64, labelled=1 / 2, teacher=(48, 1, 20), student=(16, 1, 1), prior_width=16, codebook_size=8, epochs=1
)  # fmt: skip


@pytest.fixture(scope="module")
def topic_text() -> TopicText:
    return make_text(400, 32)


@pytest.fixture(scope="module")
def splits() -> TextSplits:
    return TextSplits.draw(make_text(SMALL.vocabulary, SMALL.length, SMALL.documents), SMALL, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return run_text_demo(folder, bits=8, sizes=SMALL, notify=lambda _: None)


def words_of(part: str) -> list[str]:
    return re.findall(r"\w+", part)


# --- the text ---------------------------------------------------------------------------------------------------------


def test_tokens_spell_the_topics_each_paragraph_once() -> None:
    topic_text = make_text(400, 5000)
    assert len(set(topic_text.vocabulary)) == len(topic_text.vocabulary) == 400
    paragraphs = [words_of(paragraph) for name in sorted(topics) for paragraph in topics[name].split("\n\n")]
    distinct = dict.fromkeys(map(tuple, paragraphs))
    assert len(distinct) < 0.9 * len(paragraphs)
    all_words = [word for paragraph in distinct for word in paragraph]
    spelled = words_of("".join(topic_text.vocabulary[token] for token in topic_text.documents.flat))
    assert spelled[:-1] == all_words[: len(spelled) - 1]  # the last one may be cut
    assert len(spelled) > len(all_words) - 5000


def test_frequent_words_are_tokens(topic_text: TopicText) -> None:
    assert {" the", " is", " object"} <= set(topic_text.vocabulary)
    assert len(topic_text.documents) < len(make_text(0, 32).documents)


def test_documents_differ_from_each_other(topic_text: TopicText) -> None:
    assert len(np.unique(topic_text.documents, axis=0)) == len(topic_text.documents) > 5000


def test_a_python_without_help_texts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(VqlabelError, match=r"this Python has no module pydoc_data, .*; use a Python with its complete standard"):
        make_text(400, 32)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_held_out_documents_are_in_no_training_data(topic_text: TopicText) -> None:
    splits = TextSplits.draw(topic_text, replace(SMALL, labelled=1 / 4), seed=3)
    rows = [{tuple(row) for row in part.tolist()} for part in (splits.teacher, splits.labelled, splits.held_out)]
    assert rows[1] < rows[0]
    assert not rows[0] & rows[2]
    assert len(rows[0]) + len(rows[2]) == len(topic_text.documents)
    assert len(rows[1]) == round(len(rows[0]) / 4)
    assert not torch.equal(splits.held_out, TextSplits.draw(topic_text, SMALL, seed=4).held_out)


def test_a_hard_label_is_the_next_token() -> None:
    probs = hard_labels(torch.tensor([[3, 1, 2], [0, 4, 1]]), 5)(torch.arange(4))
    assert probs.argmax(1).tolist() == [1, 2, 4, 1]
    assert probs.sum(1).tolist() == [1, 1, 1, 1]


def test_the_dump_has_the_teachers_states_for_each_token(splits: TextSplits, tmp_path: Path) -> None:
    teacher = train_teacher(splits.teacher, SMALL.vocabulary, replace(SMALL, teacher=(16, 1, 1)), seed=0)
    labels = dump_labels(teacher, splits.labelled, tmp_path / "states", tmp_path / "model.safetensors")
    files = sorted((tmp_path / "states").iterdir())
    assert len(files) == len(splits.labelled)
    stored, head = load_file(files[5]), load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    assert torch.equal(stored["token_ids"], splits.labelled[5])
    assert (stored["hidden_states"].dtype, stored["hidden_states"].shape) == (torch.float16, (16, 1, 16))
    logits = stored["hidden_states"][:-1, 0].float() @ head.float().T
    torch.testing.assert_close(labels.logits(slice(5 * 15, 6 * 15)), logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(teacher(splits.labelled[5:6])[0, :-1] @ teacher.out, logits, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(label(teacher, splits.labelled).hidden, labels.hidden)


def test_shares_are_relative_to_the_gain_of_dense_labels() -> None:
    ces = {"hard": 4.0, "top-16": 4.25, "vql": 3.2, "dense": 3.0}
    students = [{"kind": kind, "ce": ce} for kind, ce in ces.items()]
    assert [student["share"] for student in with_shares(students)] == pytest.approx([0, -0.25, 0.8, 1])
    worse = [{**student, "ce": -student["ce"]} for student in students]
    assert [student["share"] for student in with_shares(worse)] == [None] * 4


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_run_judges_a_student_of_each_kind_of_labels(result: dict[str, Any], folder: Path) -> None:
    labels = 15 * result["documents"]["labelled"]
    assert (result["documents"], result["labels"]) == ({"teacher": 56, "labelled": 28, "held_out": 8}, labels)
    students = result["students"]
    assert [student["title"] for student in students] == [
        "hard: the text itself", "top-16 fp16, uniform tail", ".vql, 4 code bits", ".vql, 8 code bits", "dense, fp16"
    ]  # fmt: skip
    sizes = [(folder / name).stat().st_size for name in ("labels-4.vql", "labels-8.vql")]
    assert sizes[0] < sizes[1]
    assert [student["bytes"] for student in students] == [0, 16 * (8 + 16) * labels // 8, *sizes, 2 * 160 * labels]
    assert [student["bits"] for student in students] == pytest.approx([8 * student["bytes"] / labels for student in students])
    assert len({student["ce"] for student in students}) == 5
    assert 0 < result["teacher"]["ce"] < np.log(160)


def test_the_same_seed_gives_the_same_figures(result: dict[str, Any], tmp_path: Path) -> None:
    again = run_text_demo(tmp_path, bits=8, sizes=SMALL, notify=lambda _: None)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_files_of_an_earlier_run_are_kept(result: dict[str, Any], folder: Path) -> None:
    with pytest.raises(TargetExists, match=r"out.hidden_states"):
        run_text_demo(folder, sizes=SMALL, notify=lambda _: None)


@pytest.mark.parametrize("bits", [1, 129])
def test_a_rate_out_of_range_is_refused_before_anything_is_trained(bits: int) -> None:
    with pytest.raises(UsageError, match=rf"bits is {bits}; it must be 2\.\.128 code bits per label"):
        run_text_demo(bits=bits, notify=lambda _: pytest.fail("began"))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_passes_its_options_and_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(folder: Path | None, **options: Any) -> dict[str, Any]:
        seen.update(options, folder=folder)
        return {"seconds": 1}

    monkeypatch.setattr(demo, "run_text_demo", run)
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: pytest.fail("the images' demo"))
    output = CliRunner().invoke(app, ["demo", "--text", "--folder", "here", "--bits", "24", "--seed", "5", "--json"])
    assert (output.exit_code, json.loads(output.stdout)) == (0, {"seconds": 1})
    assert (seen["folder"], seen["bits"], seen["seed"]) == (Path("here"), 24, 5)


def test_without_text_the_demo_is_that_of_images_at_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(demo, "run_text_demo", lambda *_, **__: pytest.fail("the demo of texts"))
    monkeypatch.setattr(demo, "run_demo", lambda _, **options: {"options": sorted(seen.update(options) or options)})
    output = CliRunner().invoke(app, ["demo", "--json"])
    assert json.loads(output.stdout) == {"options": ["notify", "progress", "seed"]}


def test_the_exit_code_of_a_refused_rate_is_that_of_usage() -> None:
    output = CliRunner().invoke(app, ["demo", "--text", "--bits", "1"])
    assert (output.exit_code, output.stdout) == (2, "")
    assert "bits is 1; it must be 2..128" in output.stderr


def test_the_table_and_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "hard": (0, 0, 4.0, 0.5), "top-16": (416, 5200, 3.5, 0.3), "vql": (40, 500, 3.2, 0.2), "dense": (16000, 200_000, 3.0, 0.1)
    }  # fmt: skip
    names = ("bits", "bytes", "ce", "kl")
    students = with_shares([{"kind": kind, "title": kind, **dict(zip(names, row, strict=True))} for kind, row in figures.items()])
    show.show_text_demo({"labels": 100, "vocabulary": 1000, "students": students, "seconds": 61.2})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "100 labels of 1,000 tokens; students judged on held-out documents, in nats per token"
    assert lines[1].split() == ["labels", "bits/token", "size", "cross", "entropy", "KL", "to", "teacher", "gain", "over", "hard"]
    assert lines[4].split() == ["vql", "40", "500", "B", "3.200", "0.200", "80", "%"]
    assert lines[7].startswith(
        "In 40 bits per token, decoder included, 1/400 of dense labels, the .vql keeps 80 % of what dense labels teach "
    )
    assert lines[7].endswith(" beyond hard labels; top-16 labels take 416 bits and keep 50 %.")
    assert lines[8:] == ["61 s"]
    show.show_text_demo(
        {"labels": 1, "vocabulary": 2, "students": [{**student, "share": None} for student in students], "seconds": 1}
    )
    assert "dense labels taught no more than hard labels" in capsys.readouterr().out


@pytest.mark.slow
def test_labels_teach_the_more_the_nearer_they_are_to_the_teachers(tmp_path: Path) -> None:
    students = run_text_demo(tmp_path, notify=lambda _: None)["students"]
    hard, top, *packed, dense = (student["ce"] for student in students)
    assert dense < packed[1] < packed[0] < top < hard
    assert students[3]["share"] > 0.85
    assert students[3]["bits"] < 50


def test_sizes_are_those_of_the_demo_unless_others_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(vocabulary: int, length: int, documents: int | None) -> TopicText:
        raise VqlabelError(f"{vocabulary} {length} {documents}")

    monkeypatch.setattr(text, "make_text", refuse)
    with pytest.raises(VqlabelError, match="1024 64 None"):
        run_text_demo(notify=lambda _: None)
