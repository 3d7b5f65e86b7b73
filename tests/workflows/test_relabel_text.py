"""Documents and a teacher -> labels: those of each document alone, the same bytes after an interruption."""

import io
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forge import flip_bit
from pretended_cuda import pretended_cuda
from safetensors.torch import save_file
from text_dumps import write_lines
from torch import Tensor, nn
from typer.testing import CliRunner

import vqlabel
from tests.text_corpus import random_codec
from vqlabel import TextFitConfig
from vqlabel.cli import app
from vqlabel.codecs.file import save_codec
from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.errors import BadInput, BadLabels, MissingExtra, TargetExists, UsageError, VqlabelError
from vqlabel.labels.text.corpus.open import open_corpus
from vqlabel.labels.text.documents import Documents, token_hash
from vqlabel.labels.text.head import open_head
from vqlabel.storage.journal import HEADER_BYTES
from vqlabel.vql.text.decode import as_output_head
from vqlabel.vql.text.file import TextVqlFile
from vqlabel.workflows.run_state import RunState
from vqlabel.workflows.text import encode, teacher_source
from vqlabel.workflows.text.open import OpenedText
from vqlabel.workflows.text.relabel import relabel_text
from vqlabel.workflows.text.teacher_source import TeacherTextSource
from vqlabel.workflows.text.teachers import TextTeacher, load_text_teacher

V, D = 60, 8
CONFIG = TextFitConfig(bits=12, slots=1, codebook_size=4, ids=1, width=8, layers=1, window=4, latent=D, labels=150)


class Small(nn.Module):
    """A causal model that knows the rule of the corpus: token 7 x + 3 follows x.

    Hidden states also depend on all tokens before, so that a token of padding among them would show.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.lm_head = nn.Linear(D, V, bias=False)
        self.lm_head.weight = nn.Parameter(D**0.5 * F.normalize(torch.randn(V, D, generator=generator)))
        self.past = nn.Parameter(torch.randn(V, D, generator=generator))
        self.calls: list[list[int]] = []  # lengths of the documents of each call

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled() and mask.dtype == torch.bool
        assert not (tokens * ~mask).any()
        self.calls.append(mask.sum(1).tolist())
        before = (self.past[tokens] * mask[..., None]).cumsum(1) / mask.cumsum(1).clamp(min=1)[..., None]
        return 0.6 * self.lm_head.weight[(7 * tokens + 3) % V] + 0.3 * before


def documents(count: int = 40, seed: int = 0) -> list[list[int]]:
    """Documents of 1 to 30 tokens; some occur twice."""
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        tokens = [int(rng.integers(V))]
        for _ in range(0 if number % 9 == 4 else int(rng.integers(1, 30))):
            tokens.append((7 * tokens[-1] + 3) % V if rng.random() < 0.8 else int(rng.integers(V)))
        texts.append(tokens)
    return [*texts, texts[3], texts[0]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "corpus.jsonl", [{"tokens": tokens} for tokens in documents()])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    """The model, as `models_of_tests:small`."""
    model, module = Small(), ModuleType("models_of_tests")
    module.small = lambda: model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models_of_tests", module)
    return model


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ten groups, and several windows, in a small corpus."""
    monkeypatch.setattr(encode, "GROUP_TOKENS", 64)
    monkeypatch.setattr(teacher_source, "WINDOW_BATCHES", 3)


@pytest.fixture(scope="module")
def codec() -> TokenVqae:
    """A codec of the model's head."""
    codec = random_codec(price=0.02)
    codec.attach(as_output_head(load(Small()).head))
    return codec


def load(network: Any, **options: Any) -> TextTeacher:
    """The teacher `models_of_tests:small` that is or returns `network`."""
    module = ModuleType("models_of_tests")
    module.small = network  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "models_of_tests", module)
        return load_text_teacher("models_of_tests:small", **options)


def saved_head(folder: Path, model: Small, **tensors: Tensor) -> Path:
    save_file({"lm_head.weight": model.lm_head.weight.detach().clone(), **tensors}, folder / "model.safetensors")
    return folder / "model.safetensors"


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_each_document_labelled_alone(corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path) -> None:
    result = relabel_text(corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec)
    distinct = {tuple(tokens) for tokens in documents() if len(tokens) > 1}
    labels = sum(len(tokens) - 1 for tokens in distinct)
    assert {name: result[name] for name in ("documents", "labels", "repeated")} == {
        "documents": len(distinct), "labels": labels, "repeated": 2
    }  # fmt: skip
    assert sum(map(len, small.calls)) < 2 * len(distinct) + 2, "the sample of the check, the probe, and each document once"
    file, head = TextVqlFile(tmp_path / "a.vql"), as_output_head(load(small).head)
    for tokens in documents():
        index = file.documents.find(token_hash(np.array(tokens)))
        assert (index is None) == (len(tokens) == 1)
        if index is not None:
            ids = torch.tensor([tokens])
            with torch.inference_mode():
                hidden = small(ids, torch.ones_like(ids, dtype=torch.bool))[0, :-1]
            expected = codec.encode(HiddenLabels(hidden=hidden, head=head), Documents.of([np.array(tokens)]))
            np.testing.assert_array_equal(file.fields(index), expected.numpy())
    assert file.text["teacher"]["name"] == "models_of_tests:small" and len(file.text["teacher"]["sha256"]) == 64
    assert file.text["head"] == {
        "model": "models_of_tests:small", "tensor": "lm_head", "sha256": open_head(saved_head(tmp_path, small)).sha256, "vocabulary": V
    }  # fmt: skip
    assert file.label["dtype"] == "F32"


def test_labels_are_found_by_a_training_loop(corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path) -> None:
    relabel_text(corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec)
    tokens = torch.tensor([documents()[5]])
    labels = vqlabel.open_text(tmp_path / "a.vql").of(tokens)
    assert len(labels.next_tokens) == tokens.shape[1] - 1


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_labels_are_the_same_whatever_the_batch(batch: int, corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path) -> None:
    relabel_text(corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec)
    small.calls.clear()
    relabel_text(corpus, "models_of_tests:small", tmp_path / "b.vql", codec=codec, batch=batch)
    assert (tmp_path / "a.vql").read_bytes() == (tmp_path / "b.vql").read_bytes()
    assert max(map(len, small.calls)) == min(batch, len(TeacherTextSource(open_corpus(corpus), load(small))))


def test_a_batch_has_documents_of_about_one_length_from_a_window(corpus: Path, small: Small, codec: TokenVqae) -> None:
    source = TeacherTextSource(open_corpus(corpus), load(small), 4)
    small.calls.clear()
    lengths = [len(document.tokens) for document in source]
    assert lengths == source.lengths.tolist()
    windows = [sorted(lengths[start : start + 12], reverse=True) for start in range(0, len(lengths), 12)]
    assert small.calls == [window[start : start + 4] for window in windows for start in range(0, len(window), 4)]


def test_a_window_has_few_tokens(corpus: Path, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_source, "WINDOW_TOKENS", 40)
    source = TeacherTextSource(open_corpus(corpus), load(small), 64)
    small.calls.clear()
    assert [len(document.tokens) for document in source] == source.lengths.tolist()
    assert all(sum(lengths) <= 40 for lengths in small.calls) and max(map(len, small.calls)) > 2


def test_what_is_read_from_the_middle_on_is_read_in_the_same_batches(corpus: Path, small: Small) -> None:
    source = TeacherTextSource(open_corpus(corpus), load(small), 4)
    everything = np.arange(len(source))
    small.calls.clear()
    whole = list(source.read_many(everything))
    calls = small.calls.copy()
    for first in (1, 11, 12, 17, len(source) - 1, len(source)):
        small.calls.clear()
        part = list(source.read_many(everything, first))
        assert all(np.array_equal(a.rows, b.rows) for a, b in zip(part, whole[first:], strict=True))
        assert all(call in calls for call in small.calls) and len(small.calls) <= len(calls) - first // 12 * 3


def test_the_source_is_a_dump_that_pack_reads(corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path) -> None:
    head = saved_head(tmp_path, small)
    source = TeacherTextSource(open_corpus(corpus), load(small, head=head))
    vqlabel.pack_text(source, tmp_path / "packed.vql", head=head, codec=codec)
    relabel_text(corpus, load(small, head=head), tmp_path / "labelled.vql", codec=codec)
    assert (tmp_path / "packed.vql").read_bytes() == (tmp_path / "labelled.vql").read_bytes()


def test_a_dump_of_the_same_hidden_states_packs_to_the_same_labels(
    corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path
) -> None:
    head, dump, texts = saved_head(tmp_path, small), tmp_path / "dump", [torch.tensor([tokens]) for tokens in documents()]
    with torch.inference_mode():
        hidden = [small.eval()(ids, torch.ones_like(ids, dtype=torch.bool))[0, :-1].numpy() for ids in texts]
    dump.mkdir()
    np.save(dump / "tokens.npy", np.concatenate([ids[0].numpy() for ids in texts]))
    np.save(dump / "hidden.npy", np.concatenate(hidden))
    np.save(dump / "lengths.npy", np.array([ids.shape[1] for ids in texts]))
    results = [
        vqlabel.pack_text(dump, tmp_path / "packed.vql", head=head, codec=codec),
        relabel_text(corpus, load(small, head=head), tmp_path / "labelled.vql", codec=codec),
    ]
    packed, labelled = TextVqlFile(tmp_path / "packed.vql"), TextVqlFile(tmp_path / "labelled.vql")
    assert [result["repeated"] for result in results] == [2, 2] and results[0]["labels"] == results[1]["labels"]
    assert packed.documents.hashes.tobytes() == labelled.documents.hashes.tobytes()
    assert all(np.array_equal(packed.fields(index), labelled.fields(index)) for index in range(len(packed.documents)))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "F16"), (torch.bfloat16, "BF16"), (torch.float64, "F32")])
def test_hidden_states_keep_their_type(dtype: torch.dtype, name: str, corpus: Path) -> None:
    model = Small()

    def hidden(tokens: Tensor, mask: Tensor) -> Tensor:
        return model.eval()(tokens, mask).to(dtype)

    hidden.head = model.lm_head  # type: ignore[attr-defined]
    source = TeacherTextSource(open_corpus(corpus), load(hidden))
    rows = np.asarray(source.read(2).rows)
    assert (source.about.dtype, rows.dtype) == (name, np.float16 if name == "F16" else np.float32)
    ids = torch.tensor([documents()[2]])
    with torch.inference_mode():
        expected = hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0, :-1]
    assert torch.equal(torch.from_numpy(rows).float(), expected.float())


def test_a_device_encodes_as_the_cpu_does(corpus: Path, codec: TokenVqae) -> None:
    source, head = TeacherTextSource(open_corpus(corpus), load(Small())), as_output_head(load(Small()).head)
    opened, group = OpenedText(source=source, head=head, about={}), [source.read(index) for index in range(4)]
    expected = encode._encode(opened, codec, group, "cpu")
    with pretended_cuda(), encode._codec_on(codec, "cuda"):
        fields = encode._encode(opened.to("cuda"), codec, group, "cuda")
    assert all(np.array_equal(a, b) for a, b in zip(fields, expected, strict=True)) and len(fields) == 4
    assert codec.decoder.bias.device.type == "cpu"


# --- interruptions ----------------------------------------------------------------------------------------------------


class Stop(Exception):
    """A simulated crash of the machine."""


class Stopping(Small):
    """A model that fails at its n-th call."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Stop
        return super().forward(tokens, mask)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("a."))


def test_a_run_that_its_teacher_interrupts_continues_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    whole, again = load(Small()), load(Small())
    result = relabel_text(corpus, whole, tmp_path / "whole.vql", CONFIG, batch=4)
    calls = len(whole.network.calls)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"teacher models_of_tests:small: fails on tokens \[\d+, \d+\] \(Stop: Stop\)"):
        relabel_text(corpus, load(Stopping(calls - 2)), tmp_path / "a.vql", CONFIG, batch=4)
    assert left_behind(tmp_path) == ["a.vql.journal", "a.vql.state"]
    stages: list[tuple[str, int]] = []
    resumed = relabel_text(
        corpus, again, tmp_path / "a.vql", CONFIG, batch=4, progress=lambda stage, done, *_: stages.append((stage, done))
    )
    assert (tmp_path / "a.vql").read_bytes() == (tmp_path / "whole.vql").read_bytes()
    assert {**resumed, "path": 0} == {**result, "path": 0} and "held_out" in result["fit"]
    assert {stage for stage, _ in stages} == {"labelling"}, "nothing is fitted again"
    assert stages[0][1] > 12, "the documents of the first window are not labelled again"
    assert left_behind(tmp_path) == ["a.vql"]


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_with_a_codec_continues_after_the_last_group(
    after: int, corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path
) -> None:
    relabel_text(corpus, "models_of_tests:small", tmp_path / "whole.vql", codec=codec)
    groups: list[int] = []

    def stop(_stage: str, done: int, _total: int, _figures: object) -> None:
        groups.append(done)
        if len(groups) > after:
            raise Stop

    with pytest.raises(Stop):
        relabel_text(corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec, progress=stop)
    assert left_behind(tmp_path) == ["a.vql.journal"]
    made: list[int] = []
    relabel_text(
        corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec, batch=3, progress=lambda _, done, *__: made.append(done)
    )
    assert made[0] > groups[-1], "what was labelled is not labelled again"
    assert (tmp_path / "a.vql").read_bytes() == (tmp_path / "whole.vql").read_bytes()
    assert left_behind(tmp_path) == ["a.vql"]


def interrupted(corpus: Path, out: Path, **options: Any) -> None:
    def stop(stage: str, done: int, _total: int, _figures: object) -> None:
        if stage == "labelling" and done > 20:
            raise Stop

    with pytest.raises(Stop):
        relabel_text(corpus, load(Small()), out, progress=stop, **options)


def test_a_damaged_group_is_labelled_again(corpus: Path, codec: TokenVqae, tmp_path: Path) -> None:
    relabel_text(corpus, load(Small()), tmp_path / "whole.vql", codec=codec)
    interrupted(corpus, tmp_path / "a.vql", codec=codec)
    journal = tmp_path / "a.vql.journal"
    journal.write_bytes(flip_bit(journal.read_bytes(), HEADER_BYTES + 5))
    made: list[int] = []
    relabel_text(corpus, load(Small()), tmp_path / "a.vql", codec=codec, progress=lambda _, done, *__: made.append(done))
    assert made[0] < 10 and (tmp_path / "a.vql").read_bytes() == (tmp_path / "whole.vql").read_bytes()


def other_weights() -> TextTeacher:
    model = Small()
    model.past.data += 1e-3
    return load(model)


def test_a_run_does_not_continue_with_other_settings(corpus: Path, codec: TokenVqae, tmp_path: Path) -> None:
    out, other = tmp_path / "a.vql", write_lines(tmp_path / "b.jsonl", [{"tokens": tokens} for tokens in documents(seed=1)])
    interrupted(corpus, out, config=CONFIG)
    start = r"a\.vql\.state: is the state of an interrupted run with other settings \("
    for arguments, change in (
        ((corpus, load(Small()), out, TextFitConfig(**{**CONFIG.to_dict(), "bits": 8})), "bits 12.*, now 8"),
        ((other, load(Small()), out, CONFIG), "corpus 42 documents with sha256 .*, now 42 documents"),
        ((corpus, other_weights(), out, CONFIG), "teacher_sha256 .*, now "),
    ):
        with pytest.raises(
            UsageError, match=rf"{start}{change}.*\); repeat those settings to continue that run, or discard it with --restart"
        ):
            relabel_text(*arguments)
    with pytest.raises(UsageError, match=r"a\.vql\.journal: is the journal of an interrupted run with other settings \(.*tensors"):
        relabel_text(corpus, load(Small()), out, codec=codec)
    (tmp_path / "a.vql.state").unlink()
    with pytest.raises(
        UsageError, match=r"a\.vql\.journal: is the journal .*, but a\.vql\.state, with the codec of that run, is not beside it"
    ):
        relabel_text(corpus, load(Small()), out, CONFIG)
    relabel_text(corpus, load(Small()), tmp_path / "whole.vql", CONFIG)
    relabel_text(corpus, load(Small()), out, CONFIG, restart=True)
    assert out.read_bytes() == (tmp_path / "whole.vql").read_bytes()
    assert left_behind(tmp_path) == ["a.vql"]


def test_an_existing_file_is_replaced_only_if_that_is_allowed(corpus: Path, small: Small, codec: TokenVqae, tmp_path: Path) -> None:
    (tmp_path / "a.vql").write_text("precious")
    with pytest.raises(TargetExists, match=r"a\.vql exists"):
        relabel_text(corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec)
    assert small.calls == [], "it is refused before the teacher runs"
    relabel_text(corpus, "models_of_tests:small", tmp_path / "a.vql", codec=codec, overwrite=True)
    assert TextVqlFile(tmp_path / "a.vql").rows


def test_the_codec_keeps_the_rate_that_was_asked_for(corpus: Path, tmp_path: Path) -> None:
    interrupted(corpus, tmp_path / "a.vql", config=CONFIG)
    state = RunState(tmp_path / "a.vql")
    state.begin(torch.load(io.BytesIO((tmp_path / "a.vql.state").read_bytes()), weights_only=True)["settings"])
    kept = state.codec()
    assert kept is not None
    fitted, report = kept
    assert report["held_out"]["bits"] <= 12
    save_codec(fitted, tmp_path / "c.codec", report)
    low = relabel_text(corpus, load(Small()), tmp_path / "low.vql", TextFitConfig(bits=4), codec=tmp_path / "c.codec")
    high = relabel_text(corpus, load(Small()), tmp_path / "high.vql", codec=tmp_path / "c.codec")
    assert low["bytes"] < high["bytes"] and isinstance(fitted, TokenVqae)


# --- teachers ---------------------------------------------------------------------------------------------------------


def as_function(head: Any) -> Callable[[Tensor, Tensor], Tensor]:
    model = Small().eval()

    def hidden(tokens: Tensor, mask: Tensor) -> Tensor:
        return model(tokens, mask)  # type: ignore[no-any-return]

    hidden.head = head  # type: ignore[attr-defined]
    return hidden


def test_a_teacher_is_a_module_a_function_or_what_a_function_returns(tmp_path: Path) -> None:
    model = Small().train()
    weight, bias = model.lm_head.weight.detach().clone(), torch.arange(60.0)
    file = saved_head(tmp_path, model)
    linear = nn.Linear(D, V)
    linear.weight.data, linear.bias.data = weight, bias
    for network, expected in (
        (model, None), (lambda: model, None), (Small, None), (as_function(weight), None), (as_function(linear), bias),
        (as_function(file), None), (as_function(str(file)), None), (lambda: as_function(weight.half()), None),
    ):  # fmt: skip
        teacher = load(network)
        head = as_output_head(teacher.head)
        torch.testing.assert_close(head.weight, weight, rtol=1e-3, atol=1e-3)
        assert (head.bias is None) == (expected is None) and (expected is None or torch.equal(head.bias, expected))
        assert teacher([np.array([1, 2, 3]), np.array([4])])[0].shape == (3, D)
    assert load(model, head=file).head.path == file
    stored = open_head(file)
    assert load(as_function(weight)).head.sha256 == stored.sha256 != load(as_function(linear)).head.sha256
    save_file({"lm_head.weight": weight.bfloat16(), "lm_head.bias": bias}, file)
    both = nn.Linear(D, V)
    both.weight.data, both.bias.data = weight.bfloat16(), bias
    assert load(as_function(both)).head.sha256 == open_head(file).sha256


def test_only_weights_identify_a_teacher(tmp_path: Path) -> None:
    assert load(Small()).identity == load(Small).identity != other_weights().identity
    assert load(as_function(Small().lm_head)).identity == {"name": "models_of_tests:small"}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (3, "is or returns a int; it must be callable with tokens"),
        (lambda: 3, "is or returns a int"),
        (
            as_function(None),
            "has no attribute head or lm_head that is a linear layer, a tensor .*; pass its output head with --head",
        ),
        (as_function(64), "has no attribute head"),
        (as_function(torch.zeros(V, D, dtype=torch.int8)), r"its head has a tensor \[60, 8\] of torch.int8; a head is \[V, d\]"),
        (as_function(torch.zeros(V)), r"its head has a tensor \[60\] of torch.float32; a head is \[V, d\]"),
        (as_function(torch.zeros(V, D, 1)), r"its head has a tensor \[60, 8, 1\]"),
    ],
    ids=range(7),
)
def test_what_is_no_teacher_is_refused(network: Any, message: str) -> None:
    with pytest.raises(UsageError, match=rf"teacher models_of_tests:small: {message}"):
        load(network)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module:f",
            "No module named 'no_such_module'; name the folder of a causal language model of transformers, or module",
        ),
        ("gone", "gone: no such folder; name the folder"),
        (":f", ":f: no such folder"),
        (__file__, "is no folder; name the folder"),
    ],
)
def test_a_name_of_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"--teacher .*{message}"):
        load_text_teacher(name)


def returning(change: Callable[[Tensor, Tensor], Any]) -> TextTeacher:
    """A teacher whose hidden states are changed: change(hidden, tokens)."""
    model = Small().eval()

    def hidden(tokens: Tensor, mask: Tensor) -> Any:
        return change(model(tokens, mask), tokens)

    hidden.head = model.lm_head  # type: ignore[attr-defined]
    return load(hidden)


def fail(error: BaseException) -> Callable[[Tensor, Tensor], Any]:
    def change(_hidden: Tensor, _tokens: Tensor) -> Any:
        raise error

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, _: h[..., :3], UsageError, r"returns \[1, 2, 3\] of torch.float32 for tokens \[1, 2\]; it must return hidden states \[1, 2, 8\], .* lm_head|head"),
        (lambda h, _: h[0], UsageError, r"returns \[2, 8\] of"),
        (lambda h, _: h.long(), UsageError, r"returns \[1, 2, 8\] of torch.int64"),
        (lambda h, _: (h, h), UsageError, "returns tuple for tokens"),
        (lambda h, _: h.to(torch.float8_e4m3fn), UsageError, "returns torch.float8_e4m3fn; hidden states must be float16"),
        (fail(ValueError("bad\nshape")), UsageError, r"fails on tokens \[1, 2\] \(ValueError: bad shape\); it is called with tokens \[b, L\] and a mask"),
        (fail(SystemExit(3)), UsageError, r"ends the program \(SystemExit 3\)"),
        (fail(torch.OutOfMemoryError("CUDA out of memory")), VqlabelError, r"out of memory on 1 documents of up to 2 tokens \(CUDA .*\); lower --batch"),
        (lambda h, _: h * torch.inf, BadLabels, r"corpus\.jsonl, line 1: row 0 holds NaN or Inf"),
        (lambda h, _: h.roll(-1, 1), BadLabels, r"and that of token t \+ 2 is .*: rows come one too early"),
        (lambda h, _: h.roll(1, 1), BadLabels, "and that of token t is .*: rows come one too late"),
        (lambda h, _: h.flip(2), BadLabels, "under a unigram model of the same tokens"),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_teacher_that_fails_or_returns_no_hidden_states_of_the_corpus_is_refused(
    change: Any, error: type[Exception], message: str, corpus: Path, codec: TokenVqae, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        relabel_text(corpus, returning(change), tmp_path / "a.vql", codec=codec)
    assert left_behind(tmp_path) == []


def test_states_from_before_the_final_norm_pass_it_if_the_head_s_file_has_it(
    corpus: Path, codec: TokenVqae, tmp_path: Path
) -> None:
    model = Small().eval()
    scale = torch.tensor([30.0, 1, 30, 1, 30, 1, 30, 1])
    inner = nn.RMSNorm(D, eps=1e-6)
    head = saved_head(tmp_path, model, **{"model.norm.weight": scale})

    def hidden(tokens: Tensor, mask: Tensor) -> Tensor:
        return model(tokens, mask) / scale

    teacher = load(hidden, head=head)
    result = relabel_text(corpus, teacher, tmp_path / "a.vql", codec=codec)
    assert "the final norm model.norm.weight is applied to the hidden states" in " ".join(result["notes"])
    ids = torch.tensor([documents()[2]])
    with torch.inference_mode():
        normed = inner(hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0, :-1]) * scale
    expected = codec.encode(HiddenLabels(hidden=normed, head=as_output_head(teacher.head)), Documents.of([ids[0].numpy()]))
    file = TextVqlFile(tmp_path / "a.vql")
    index = file.documents.find(token_hash(ids[0].numpy()))
    assert index is not None
    np.testing.assert_array_equal(file.fields(index), expected.numpy())


def test_a_corpus_that_the_teacher_cannot_label_is_refused_before_it_runs(codec: TokenVqae, tmp_path: Path) -> None:
    for documents_, error, message in (
        (
            [[1, 2], [3, 60]],
            BadInput,
            r"b\.jsonl, line 2: token 60 is outside 0\.\.59, the vocabulary of lm_head in models_of_tests:small",
        ),
        ([[1], [3]], BadInput, r"b\.jsonl: has no document of two tokens or more"),
    ):
        path = write_lines(tmp_path / "b.jsonl", [{"tokens": tokens} for tokens in documents_])
        with pytest.raises(error, match=message):
            relabel_text(path, load(Small()), tmp_path / "a.vql", codec=codec)
    for batch in (0, -1, 1 << 20):
        with pytest.raises(UsageError, match=rf"batch is {batch}; it must be 1\.\.65536"):
            relabel_text(
                write_lines(tmp_path / "b.jsonl", [{"tokens": [1, 2]}]), load(Small()), tmp_path / "a.vql", codec=codec, batch=batch
            )


# --- transformers -----------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """A model with the interface of LlamaForCausalLM."""

    def __init__(self, factor: float = 1.0, padding: int = 0, longest: int | None = None) -> None:
        super().__init__()
        self.body, self.factor, self.padding = Small(), factor, padding
        self.config = SimpleNamespace(max_position_embeddings=longest)
        self.full: list[int] = []  # lengths of the documents whose logits were computed

    def base_model(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        assert attention_mask.dtype == torch.int64 and not use_cache
        return SimpleNamespace(last_hidden_state=self.body(input_ids, attention_mask == 1))

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        self.full.append(input_ids.shape[1])
        hidden = self.body(input_ids, torch.ones_like(input_ids, dtype=torch.bool))
        logits = self.factor * self.body.lm_head(hidden)
        return SimpleNamespace(logits=F.pad(logits, (0, self.padding), value=9.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a model, with its weights."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-6}))
    saved_head(tmp_path / "tiny", Small(), **{"model.norm.weight": torch.ones(D)})
    return tmp_path / "tiny"


def install(monkeypatch: pytest.MonkeyPatch, model: Any, version: str = "5.24.0") -> list[dict[str, Any]]:
    """Make `transformers` a module whose causal language model is `model`; returns the options of all calls."""
    called: list[dict[str, Any]] = []

    def from_pretrained(path: str, **options: Any) -> Any:
        called.append({"path": path, **options})
        if isinstance(model, Exception):
            raise model
        return model.train()

    auto = SimpleNamespace(from_pretrained=from_pretrained)
    module = ModuleType("transformers")
    module.AutoModelForCausalLM, module.__version__ = auto, version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    return called


@pytest.mark.parametrize("padding", [0, 4])
def test_a_model_of_transformers_is_a_teacher(
    padding: int, folder: Path, corpus: Path, codec: TokenVqae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Causal(padding=padding)
    called = install(monkeypatch, model)
    result = relabel_text(corpus, folder, tmp_path / "a.vql", codec=codec)
    assert called == [{"path": str(folder), "local_files_only": True}] and "notes" not in result
    assert model.full == [len(documents()[0])], "logits are computed for one document only"
    relabel_text(corpus, load(Small(), head=folder), tmp_path / "b.vql", codec=codec)
    first, second = TextVqlFile(tmp_path / "a.vql"), TextVqlFile(tmp_path / "b.vql")
    assert first.text["teacher"]["name"] == "tiny" and first.text["head"] == second.text["head"]
    assert all(np.array_equal(first.fields(index), second.fields(index)) for index in range(len(first.documents)))


def test_older_transformers_are_asked_for_the_stored_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = install(monkeypatch, Causal(), "4.57.1")
    assert load_text_teacher(folder).head.norm is None, "the model has applied it"
    assert called[0]["torch_dtype"] == "auto"


def test_a_model_whose_logits_are_not_those_of_its_head_is_refused_with_both(
    folder: Path, corpus: Path, codec: TokenVqae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Causal(factor=0.8)
    install(monkeypatch, model)
    ids = torch.tensor([documents()[0]])
    with torch.inference_mode():
        logits = model.eval().body.lm_head(model.body(ids, torch.ones_like(ids, dtype=torch.bool)))[0, :-1]
    by_head, own = (float(F.cross_entropy(factor * logits, ids[0, 1:])) for factor in (1, 0.8))
    message = rf"line 1, its head lm_head\.weight in \S*tiny gives .* cross-entropy of {by_head:.4f} nats, and its own logits {own:.4f} \(KL"
    with pytest.raises(UsageError, match=message):
        relabel_text(corpus, folder, tmp_path / "a.vql", codec=codec)
    install(monkeypatch, Causal(factor=float("nan")))
    with pytest.raises(UsageError, match="KL between them nan"):
        relabel_text(corpus, folder, tmp_path / "a.vql", codec=codec)
    install(monkeypatch, Causal(padding=-3))
    with pytest.raises(
        UsageError, match=r"returns logits of 57 ids, but its head lm_head\.weight in \S*tiny has a vocabulary of 60"
    ):
        relabel_text(corpus, folder, tmp_path / "a.vql", codec=codec)


def test_a_corpus_of_another_tokenizer_is_refused(
    folder: Path, codec: TokenVqae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Causal())
    mapped = [[(token * 17 + 5) % V for token in tokens] for tokens in documents()]
    path = write_lines(tmp_path / "b.jsonl", [{"tokens": tokens} for tokens in mapped])
    message = r"b\.jsonl: the mean cross-entropy of its tokens under teacher tiny is .* unigram model .*: the corpus is of another tokenizer"
    with pytest.raises(BadInput, match=message):
        relabel_text(path, folder, tmp_path / "a.vql", codec=codec)


def test_documents_beyond_the_model_s_positions_are_refused(
    folder: Path, corpus: Path, codec: TokenVqae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [len(tokens) for tokens in documents()]
    install(monkeypatch, Causal(longest=max(lengths)))
    relabel_text(corpus, folder, tmp_path / "a.vql", codec=codec)
    install(monkeypatch, Causal(longest=max(lengths) - 1))
    place = rf"line {lengths.index(max(lengths)) + 1}: has {max(lengths)} tokens; teacher tiny reads at most {max(lengths) - 1}"
    with pytest.raises(UsageError, match=rf"{place} \(max_position_embeddings\): cut the documents"):
        relabel_text(corpus, folder, tmp_path / "b.vql", codec=codec)


def test_a_folder_without_a_model_or_library_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"--teacher \S*empty: has no config\.json; pass the folder of a causal language model"):
        load_text_teacher(tmp_path / "empty")
    install(monkeypatch, ValueError("Unrecognized model"))
    with pytest.raises(UsageError, match=r"tiny: transformers loads no causal language model from it \(Unrecognized model\)"):
        load_text_teacher(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"needs transformers, .*'vqlabel\[teachers\]'"):
        load_text_teacher(folder)


# --- command line -----------------------------------------------------------------------------------------------------


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["relabel", *map(str, words)])


def test_the_command_line_labels_documents(folder: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vqlabel.config.TextFitConfig", partial(TextFitConfig, slots=1, codebook_size=4, width=8, layers=1, window=4)
    )
    flat = np.concatenate([np.array(tokens) for tokens in documents()])
    np.save(tmp_path / "flat.npy", flat)
    short = ("--text", tmp_path / "flat.npy", "--document-length", 12, "--teacher", "models_of_tests:small", "--batch", 5)
    fit = ("--bits", 10, "--ids", 1, "--latent", D, "--no-future", "--reference-head", "--head", folder, "--seed", 3)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    ran = run(*short, *fit, "--tokenizer", folder, "-o", tmp_path / "a.vql", "--json")
    assert ran.exit_code == 0, ran.output
    result, file = json.loads(ran.stdout), TextVqlFile(tmp_path / "a.vql")
    assert (result["documents"], result["labels"]) == (-(-len(flat) // 12), len(flat) - -(-len(flat) // 12))
    assert max(map(len, small.calls)) == 5
    config: Any = file.config
    assert (config.ids, config.latent, config.head, config.prior.future) == (1, D, "referenced", False)
    assert result["fit"]["fit"]["bits"] == 10 and result["fit"]["fit"]["seed"] == 3
    assert file.text["tokenizer"]["name"] == "tiny"
    again = run(*short, "-o", tmp_path / "a.vql")
    assert again.exit_code == 4 and "a.vql exists; pass --overwrite" in again.stderr
    words = run(*short, *fit, "--tokenizer", folder, "-o", tmp_path / "a.vql", "--overwrite")
    assert words.exit_code == 0 and f"{tmp_path / 'a.vql'}: {result['labels']:,} labels of" in words.stdout


def test_a_model_s_own_tokenizer_reads_texts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Causal())
    tokenizer = SimpleNamespace(from_pretrained=lambda path, **_: lambda text: {"input_ids": [ord(letter) % V for letter in text]})
    sys.modules["transformers"].AutoTokenizer = tokenizer  # type: ignore[attr-defined]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    path = write_lines(tmp_path / "texts.jsonl", [{"text": "abc"}, {"text": "bcda"}])
    save_codec(random_codec(), tmp_path / "c.codec", {})
    ran = run("--text", path, "--teacher", folder, "--codec", tmp_path / "c.codec", "-o", tmp_path / "a.vql")
    assert ran.exit_code == 0, ran.output
    file = TextVqlFile(tmp_path / "a.vql")
    assert file.documents.find(token_hash(np.array([ord(letter) % V for letter in "bcda"]))) == 1
    assert file.text["tokenizer"]["name"] == "tiny" and file.rows == 5


@pytest.mark.parametrize(("last", "kept"), [(None, []), (9, ["a.vql.state"]), (1, ["a.vql.journal", "a.vql.state"])])
def test_an_interrupt_tells_how_to_continue_if_there_is_something_to_continue_from(
    last: int | None, kept: list[str], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(Small())
    documents = relabel_text(corpus, whole, tmp_path / "whole.vql", CONFIG, batch=4)["documents"]
    assert documents == 36, "nine batches, of which the last three are of the last window"
    after = 0 if last is None else len(whole.network.calls) - last  # type: ignore[attr-defined]

    class Interrupted(Small):
        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            if len(self.calls) == after:
                raise KeyboardInterrupt
            return super().forward(tokens, mask)

    monkeypatch.setattr("vqlabel.config.TextFitConfig", lambda **_: CONFIG)
    module = ModuleType("models_of_tests")
    module.small = Interrupted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models_of_tests", module)
    words = ("--text", corpus, "--teacher", "models_of_tests:small", "-o", tmp_path / "a.vql", "--batch", 4)
    ran = run(*words)
    remedy = "; run the same command to continue" if kept else ""
    assert (ran.exit_code, ran.stderr) == (130, f"vqlabel: interrupted; no partial output was left{remedy}\n")
    assert left_behind(tmp_path) == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "relabel needs a folder of images, or a corpus of documents with --text; pass one of the two"),
        (("images", "--text", "corpus.jsonl"), "pass one of the two"),
        (("--text", "c", "--epochs", 300), "--epochs: is for labels of images; remove it, or --text"),
        (("--text", "c", "--layout", "lpld"), "--layout: is for labels of images"),
        (("--text", "c", "--image-digest", "names"), "--image-digest: is for labels of images"),
        (("images", "--bytes", "1MB"), "--bytes: is for labels of documents; remove it, or pass --text CORPUS"),
        (("images", "--no-future"), "--no-future: is for labels of documents"),
        (("images", "--document-length", 5), "--document-length: is for labels of documents"),
        (
            ("--text", "c", "--codec", "x.codec", "--ids", 2),
            "--ids: is an option of a fit, and x.codec is fitted; remove it, or --codec",
        ),
        (("--text", "c", "--bits", 2, "--ratio", 9), "bits and ratio is .* are several rates; give one"),
        (("--text", "c", "--bytes", "much"), "--bytes 'much': must be a number of bytes"),
        (("--text", "gone.jsonl"), r"gone\.jsonl: no such file or directory; a corpus is"),
    ],
    ids=range(12),
)
def test_options_of_the_other_kind_are_refused_with_their_names(words: Any, message: str, small: Small, tmp_path: Path) -> None:
    ran = run(*words, "--teacher", "models_of_tests:small", "-o", tmp_path / "a.vql")
    assert ran.exit_code == 2 and ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert re.search(message, ran.stderr), ran.stderr
