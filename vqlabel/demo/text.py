"""The steps of `vqlabel demo --text`; every figure is measured during the run."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.config import TextFitConfig
from vqlabel.demo.topics import TopicText, make_text
from vqlabel.errors import require
from vqlabel.labels.text.documents import Documents
from vqlabel.progress import Progress, silent
from vqlabel.report.text.measure import PeerLabels
from vqlabel.report.text.peers.topk import TopK
from vqlabel.report.text.student import ProbsOf, StudentSchedule, StudentScores, judge, train
from vqlabel.report.text.student_network import CausalStudent, StudentConfig
from vqlabel.storage.targets import refuse_existing
from vqlabel.threads import small_operations
from vqlabel.training.text.text_labels import open_text
from vqlabel.workflows.parallel import in_parallel
from vqlabel.workflows.text.fit import fit_text
from vqlabel.workflows.text.pack import pack_text

TOP = 16  # stored tokens per label of the peer
FP16_BITS = 16
LABELLED_AT_ONCE = 16  # documents
CODE_BITS = 8  # of a slot, about; the fit chooses how many slots a label uses


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDemoSizes:
    """What the duration of the demo depends on."""

    vocabulary: int = 1024  # V
    length: int = 64  # tokens of a document
    documents: int | None = None  # of the text; None: all
    held_out: float = 1 / 8  # share of the documents, which no network learns from
    labelled: float = 1 / 4  # share of the teacher's documents that are labelled, for the students
    teacher: tuple[int, int, int] = (96, 2, 3)  # width, layers, passes
    student: tuple[int, int, int] = (64, 1, 4)
    prior_width: int = 64
    codebook_size: int = 128
    epochs: int = 2  # of the fit


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSplits:
    """Documents [n, length] of tokens."""

    teacher: Tensor  # that the teacher learns from
    labelled: Tensor  # the first of these, with labels for the students
    held_out: Tensor

    @classmethod
    def draw(cls, text: TopicText, sizes: TextDemoSizes, seed: int) -> "TextSplits":
        """Random documents for each purpose."""
        order = np.random.default_rng(seed).permutation(len(text.documents))
        held_out, others = np.split(text.documents[order], [max(1, round(sizes.held_out * len(order)))])
        teacher = torch.from_numpy(others)
        return cls(
            teacher=teacher,
            labelled=teacher[: max(2, round(sizes.labelled * len(teacher)))],
            held_out=torch.from_numpy(held_out),
        )


def run_text_demo(
    folder: Path | None = None,
    *,
    bits: int = 16,
    seed: int = 0,
    sizes: TextDemoSizes | None = None,
    notify: Callable[[str], None] = print,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train a language model on the help texts of Python, dump its hidden states, fit, pack, and train a student from
    each kind of labels.

    Args:
        folder: where `hidden_states/`, `model.safetensors`, `codec.safetensors` and two `.vql` files are written; None:
            a temporary folder, deleted at the end.
        bits: code bits per label of one `.vql`, 2..128; the other one has half of them.
        notify: is called with a line of text at each step.

    Returns:
        labels, vocabulary, documents; teacher, its scores; students, for each kind of labels: its title, bits per
        label, bytes, the student's scores on held-out documents, and `share`, its gain in cross entropy over hard
        labels relative to that of dense labels (None: dense labels have no gain); seconds.

    Raises:
        UsageError: `bits` is out of range.
        VqlabelError: this Python has no help texts.
        TargetExists: `folder` has the files of an earlier run.
    """
    require(2 <= bits <= 128, "bits", bits, "must be 2..128 code bits per label")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="vqlabel-demo-") as temporary:
            return run_text_demo(Path(temporary), bits=bits, seed=seed, sizes=sizes, notify=notify, progress=progress)
    began, sizes = time.perf_counter(), sizes or TextDemoSizes()
    dump, head_file, codec_file = folder / "hidden_states", folder / "model.safetensors", folder / "codec.safetensors"
    files = {rate: folder / f"labels-{rate:g}.vql" for rate in (bits, bits / 2)}
    for target in (dump, head_file, codec_file, *files.values()):
        refuse_existing(target, overwrite=False)

    text = make_text(sizes.vocabulary, sizes.length, sizes.documents)
    splits = TextSplits.draw(text, sizes, seed)
    notify(f"1/4 training a teacher on {splits.teacher.numel():,} tokens of Python's help texts")
    teacher = train_teacher(splits.teacher, len(text.vocabulary), sizes, seed, progress)
    held_out = label(teacher, splits.held_out)
    scores = judge(teacher, as_documents(splits.held_out), held_out.probs)
    notify(f"    teacher: cross entropy {scores.ce:.2f} nats per token on {splits.held_out.numel():,} held-out tokens")

    notify(f"2/4 dumping its hidden states of {len(splits.labelled):,} documents")
    labels = dump_labels(teacher, splits.labelled, dump, head_file)

    notify(f"3/4 fitting a codec, packing at {' and '.join(f'{rate:g}' for rate in files)} code bits per label")
    config = TextFitConfig(
        bits=bits, slots=max(2, -(-bits // CODE_BITS)), codebook_size=sizes.codebook_size, ids=4, width=sizes.prior_width, layers=1,
        window=16, epochs=sizes.epochs, seed=seed,
    )  # fmt: skip
    codec, _ = fit_text(dump, config, head=head_file, out=codec_file, progress=progress)
    for rate, file in files.items():
        at_rate = TextFitConfig() if rate == bits else TextFitConfig(bits=rate)
        pack_text(dump, file, at_rate, head=head_file, codec=codec if rate == bits else codec_file, progress=progress)

    kinds = kinds_of_labels(splits.labelled, labels, files)
    notify(f"4/4 training a student from each of {len(kinds)} kinds of labels")
    students = train_students(kinds, splits, held_out, sizes, seed, progress)
    return {
        "labels": len(labels),
        "documents": {name: len(getattr(splits, name)) for name in ("teacher", "labelled", "held_out")},
        "vocabulary": len(text.vocabulary),
        "teacher": scores._asdict(),
        "students": with_shares([{**asdict(kind), **scores._asdict()} for kind, scores in students]),
        "seconds": round(time.perf_counter() - began, 1),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class KindOfLabels:
    """Labels that a student learns from. Hard labels are the text, and take no bits beside it."""

    kind: str  # hard | dense | top-16 | vql
    title: str
    bits: float  # per label; of a `.vql`, all of its file
    bytes: int


def as_documents(tokens: Tensor) -> Documents:
    """Documents [n, length], one after the other."""
    return Documents.of(list(tokens.numpy()))


def hard_labels(tokens: Tensor, vocabulary: int) -> ProbsOf:
    """Probability 1 of the token that follows in the text."""
    next_tokens = tokens[:, 1:].flatten()
    return lambda rows: F.one_hot(next_tokens[rows], vocabulary).float()


def train_teacher(tokens: Tensor, vocabulary: int, sizes: TextDemoSizes, seed: int, progress: Progress = silent) -> CausalStudent:
    """A causal transformer that learned documents [n, length] by their next tokens."""
    width, layers, passes = sizes.teacher
    teacher = CausalStudent.draw(StudentConfig(vocabulary=vocabulary, width=width, layers=layers), seed)
    schedule = StudentSchedule(passes=passes, batch=8, learning_rate=3e-3, weight_decay=0.1, seed=seed)
    with small_operations():
        train(teacher, as_documents(tokens), hard_labels(tokens, vocabulary), schedule, progress=_named("teacher", progress))
    return teacher


def _named(stage: str, progress: Progress) -> Progress:
    """Progress of training, under another name."""
    return lambda _, done, total, figures: progress(stage, done, total, figures)


@torch.no_grad()
def hidden_states(teacher: CausalStudent, tokens: Tensor) -> Tensor:
    """Documents [n, length] -> final hidden states [n, length, d] float16."""
    with small_operations():
        return torch.cat([teacher(part).half() for part in tokens.split(LABELLED_AT_ONCE)])


def label(teacher: CausalStudent, tokens: Tensor) -> HiddenLabels:
    """The teacher's labels of documents [n, length], from hidden states and a head in fp16."""
    return _as_labels(teacher, hidden_states(teacher, tokens))


def _as_labels(teacher: CausalStudent, states: Tensor) -> HiddenLabels:
    """Hidden states [n, length, d] of documents -> n * (length - 1) labels; the last state is of an unknown token."""
    head = OutputHead(weight=teacher.out.detach().T.half().float().contiguous())
    return HiddenLabels(hidden=states[:, :-1].flatten(0, 1), head=head)


def dump_labels(teacher: CausalStudent, tokens: Tensor, folder: Path, head_file: Path) -> HiddenLabels:
    """Write the hidden states of documents [n, length], a file for each as vLLM's `extract_hidden_states` does, and the
    output head. Returns the labels that these files hold.
    """
    folder.mkdir(parents=True)
    states = hidden_states(teacher, tokens)
    for number, (ids, hidden) in enumerate(zip(tokens, states, strict=True)):
        save_file({"token_ids": ids.clone(), "hidden_states": hidden[:, None].clone()}, folder / f"{number:05}.safetensors")
    labels = _as_labels(teacher, states)
    save_file({"lm_head.weight": labels.head.weight.half()}, head_file)
    return labels


def kinds_of_labels(tokens: Tensor, labels: HiddenLabels, files: Mapping[float, Path]) -> list[tuple[KindOfLabels, ProbsOf]]:
    """The labels of documents [n, length] in every form: the text, the `.vql` files by their code bits, and others."""
    count, vocabulary = labels.shape

    def kind(name: str, title: str, bits: float, probs_of: ProbsOf) -> tuple[KindOfLabels, ProbsOf]:
        return KindOfLabels(kind=name, title=title, bits=bits, bytes=round(bits * count / 8)), probs_of

    top = PeerLabels(TopK(vocabulary=vocabulary, k=TOP), labels)
    opened = {rate: open_text(path).of(tokens) for rate, path in files.items()}
    return [
        kind("hard", "hard: the text itself", 0, hard_labels(tokens, vocabulary)),
        kind(f"top-{TOP}", top.peer.title, top.bits, top),
        *(
            kind("vql", f".vql, {rate:g} code bits", 8 * files[rate].stat().st_size / count, opened[rate].probs)
            for rate in sorted(files)
        ),
        kind("dense", "dense, fp16", FP16_BITS * vocabulary, labels.probs),
    ]


def train_students(
    kinds: list[tuple[KindOfLabels, ProbsOf]],
    splits: TextSplits,
    held_out: HiddenLabels,
    sizes: TextDemoSizes,
    seed: int,
    progress: Progress = silent,
) -> list[tuple[KindOfLabels, StudentScores]]:
    """Train a student from each kind of labels, with the same start and order of documents, a student on each core.

    Returns:
        The scores of each on the held-out documents.
    """
    width, layers, passes = sizes.student
    config = StudentConfig(vocabulary=held_out.shape[1], width=width, layers=layers)
    schedule = StudentSchedule(passes=passes, batch=8, learning_rate=2e-3, seed=seed)
    learn, judged = as_documents(splits.labelled), as_documents(splits.held_out)

    def scores_of(task: tuple[CausalStudent, KindOfLabels, ProbsOf]) -> StudentScores:
        student, _, probs_of = task
        train(student, learn, probs_of, schedule)
        return judge(student, judged, held_out.probs)

    # drawn before the threads start, because the initial weights come from torch's global generator
    tasks = [(CausalStudent.draw(config, seed + 1), kind, probs_of) for kind, probs_of in kinds]
    results: list[tuple[KindOfLabels, StudentScores]] = []
    for (_, kind, _), scores in in_parallel(tasks, scores_of, "cpu"):
        results.append((kind, scores))
        progress("students", len(results), len(tasks), {})
    return results


def with_shares(students: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Students with `share`: the gain in cross entropy over hard labels, relative to the gain of dense labels."""
    ce = {student["kind"]: student["ce"] for student in students}
    gain = ce["hard"] - ce["dense"]
    return [{**student, "share": (ce["hard"] - student["ce"]) / gain if gain > 0 else None} for student in students]
