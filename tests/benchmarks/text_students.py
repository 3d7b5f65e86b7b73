"""What labels of language models teach: students of hard and dense labels, of every peer, and of labels that a caller
passes, on real teachers.

    python tests/benchmarks/text_students.py [--teachers sharp flat] [--kinds hard dense top-50 ...] [--seeds 0 1 2]
        [--passes 1] [--codecs FOLDER --bits 16 64] [--out students.jsonl] [--threads 1] [--measure] [--time 20]

Needs the teachers "sharp" and "flat" of shared/data/lm beside the checkout. A student is the first 2 of the flat
teacher's 4 layers; it learns on sequences 128-1127 of 128 labels, and is judged on sequences 64-127. Students of one
seed have the same start and the same order of sequences. A result is appended to OUT as soon as it is there; what OUT
has already is skipped. --bits adds labels of the codec FOLDER/TEACHER.safetensors, which text_rates.py --save writes,
as kinds "vqae-16", ...; what all rates share, the choices of codes and ids, is kept beside it. --measure prints bits
and distortion of all peers instead; --time, the duration of one step.

From Python, with labels of one's own:

    import text_students
    text_students.run("sharp", {"mine": lambda rows: probabilities}, seeds=[0], passes=1, out=Path("students.jsonl"))

where `rows` [b] are indices of labels, 128 for each of the 1,000 sequences in order, and the result is [b, V]. A
process that runs for long calls `text_students.keep_memory()` first, as the script does.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqlabel.codecs.file import load_stored_codec
from vqlabel.codecs.hidden_labels import HiddenLabels, OutputHead
from vqlabel.codecs.token_vqae.choose import Choices
from vqlabel.codecs.token_vqae.codec import DecodedLabels, TokenVqae
from vqlabel.codecs.token_vqae.fit.price import price_of, rate_at
from vqlabel.labels.text.documents import Documents
from vqlabel.report.text.measure import PeerLabels, measure_peers
from vqlabel.report.text.peers import text_peers
from vqlabel.report.text.student import ProbsOf, StudentSchedule, train
from vqlabel.report.text.student_labels import StudentCorpus, train_and_judge
from vqlabel.report.text.student_network import CausalStudent

BESIDE = Path(__file__).parents[3]
TEACHERS, TOOLS = BESIDE / "shared" / "data" / "lm", BESIDE / "shared" / "tools"
ARRAYS = BESIDE / "lm"  # made on first use
SEQUENCES, LENGTH = 3000, 128  # of the arrays; labels of a sequence
JUDGE, LEARN, SCORE = slice(64, 128), slice(128, 1128), slice(128, 1128, 16)  # sequences; SCORE: those peers are measured on
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of mallopt
PART_OF_TEACHER = {"emb": "embedding", "bl": "blocks", "nf": "norm", "n1": "norm_attention", "n2": "norm_hidden",
                   "qkv": "qkv", "o": "mixed", "f1": "hidden", "f2": "back", "weight": "weight"}  # fmt: skip


class Corpus(StudentCorpus):
    """Sequences with their labels, and the kinds of labels that students learn from."""

    def kinds(self) -> dict[str, Callable[[int], ProbsOf]]:
        """Seed -> labels, by kind. The peer that stores all logits is left out: its codes take 32 kB per label."""
        kinds: dict[str, Callable[[int], ProbsOf]] = {"hard": lambda _: self.hard, "dense": lambda _: self.dense}
        peers = text_peers(self.labels.shape[1], self.labels.head)
        for name, peer in peers.items():
            if name != "teacher":
                kinds[name] = lambda seed, peer=peer: PeerLabels(peer, self.labels, seed)
        return kinds


def keep_memory() -> None:
    """Let glibc keep freed memory of this process: new pages for each chunk of logits take a sixth of a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not Linux
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 1 << 26)):
        libc.mallopt(option, value)


def load(teacher: str, sequences: slice, arrays: Path = ARRAYS) -> Corpus:
    """Sequences of a teacher's arrays."""
    make_arrays(teacher, arrays)
    x, h, w = (np.load(arrays / f"{name}_{teacher}.npy", mmap_mode="r") for name in "xhW")
    tokens = np.ascontiguousarray(x[sequences], np.int64)
    hidden = torch.from_numpy(np.array(h[sequences]).reshape(-1, h.shape[2]))
    labels = HiddenLabels(hidden=hidden, head=OutputHead(weight=torch.from_numpy(np.array(w, np.float32))))
    return Corpus(Documents(tokens.reshape(-1), np.full(len(tokens), tokens.shape[1])), labels)


def make_arrays(teacher: str, arrays: Path = ARRAYS) -> None:
    """Write tokens x [3000, 129], hidden states h [3000, 128, 256] and head W [16384, 256], fp16, if one is missing."""
    if all((arrays / f"{name}_{teacher}.npy").exists() for name in "xhW"):
        return
    sys.path.insert(0, str(TOOLS))
    from language_model import load_model

    model, stream = load_model(TEACHERS / f"{teacher}.safetensors"), np.load(TEACHERS / f"tokens_{teacher}.npy")
    tokens = np.stack([stream[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(SEQUENCES)]).astype(np.int64)
    with torch.inference_mode():
        hidden = torch.cat([model(part[:, :-1]).half() for part in torch.from_numpy(tokens).split(64)])
    arrays.mkdir(parents=True, exist_ok=True)
    head = model.emb.weight.detach().half()
    for name, array in (("x", tokens), ("h", hidden.numpy()), ("W", head.numpy())):
        np.save(arrays / f"{name}_{teacher}.npy", array)


def cut_teacher(layers: int = 2) -> CausalStudent:
    """The first layers of the flat teacher."""
    weights = {}
    for name, tensor in load_file(TEACHERS / "flat.safetensors").items():
        weights[".".join(part if part.isdigit() else PART_OF_TEACHER[part] for part in name.split("."))] = tensor.float()
    return CausalStudent.of_weights(weights, layers=layers, heads=4)


class CodecLabels:
    """The labels of a codec at a rate, as a student reads them.

    Attributes:
        bits: mean per label: codes, ids and the entropy of counts.
    """

    def __init__(self, codec: TokenVqae, choices: Choices, documents: Documents, bits: float) -> None:
        price = price_of(choices, codec.config, bits)
        self.bits = rate_at(choices, codec.config, price).bits
        self.labels: DecodedLabels = codec.decode(choices.stored(codec.config, price).int(), documents)

    def __call__(self, rows: Tensor) -> Tensor:
        """[b] indices of labels -> [b, V] probabilities."""
        return self.labels.probs(rows)


def codec_kinds(teacher: str, folder: Path, bits: Sequence[float], arrays: Path = ARRAYS) -> dict[str, ProbsOf]:
    """Labels of the codec of a teacher at every rate, by kind."""
    learn, file = load(teacher, LEARN, arrays), folder / f"{teacher}.safetensors"
    codec, _ = load_stored_codec(file)
    assert isinstance(codec, TokenVqae)
    kept = folder / f"{teacher}.choices.safetensors"
    if not kept.exists() or kept.stat().st_mtime < file.stat().st_mtime:
        choose_all(codec, learn, kept)
    choices = Choices(**{name: tensor.float() if name == "kl" else tensor.long() for name, tensor in load_file(kept).items()})
    return {f"vqae-{rate:g}": CodecLabels(codec, choices, learn.documents, rate) for rate in bits}


def choose_all(codec: TokenVqae, corpus: Corpus, out: Path, group: int = 16) -> None:
    """Write the choices of codes and ids of all labels, some sequences at a time."""
    parts, count = list[Choices](), len(corpus.documents)
    for first in range(0, count, group):
        documents, rows = corpus.documents.take(np.arange(first, min(first + group, count)))
        parts.append(codec.choices(corpus.labels[torch.from_numpy(rows)], documents))
        print(f"choosing codes {first + group}/{count}", end="\r", file=sys.stderr, flush=True)
    whole = Choices.join(parts)._asdict()
    save_file({name: tensor.half() if name == "kl" else tensor.int() for name, tensor in whole.items()}, out)


def run(
    teacher: str,
    kinds: Mapping[str, ProbsOf] | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    passes: int = 1,
    out: Path = Path("students.jsonl"),
    student: Callable[[], CausalStudent] = cut_teacher,
    arrays: Path = ARRAYS,
) -> list[dict[str, Any]]:
    """Train and judge a student for every kind and seed that `out` does not have yet.

    Args:
        kinds: names of `Corpus.kinds`; or labels of one's own by name, see the module's docstring.

    Returns:
        The new results, as appended to `out`.
    """
    learn, held = load(teacher, LEARN, arrays), load(teacher, JUDGE, arrays)
    known, results = learn.kinds(), list[dict[str, Any]]()
    if not isinstance(kinds, Mapping) and (unknown := set(kinds) - set(known)):
        raise SystemExit(f"unknown kinds {sorted(unknown)}; known: {', '.join(known)}")
    for seed in seeds:
        for name in kinds:
            key = {"teacher": teacher, "kind": name, "seed": seed, "passes": passes}
            if key in done(out):
                continue
            labels = kinds[name] if isinstance(kinds, Mapping) else known[name](seed)
            results.append({**key, **learn_and_judge(student(), learn, held, labels, seed, passes)})
            with out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(json.dumps(results[-1]), flush=True)
    return results


def done(out: Path) -> list[dict[str, Any]]:
    """Teacher, kind, seed and passes of the results that a file has."""
    lines = out.read_text().splitlines() if out.exists() else []
    return [{name: result[name] for name in ("teacher", "kind", "seed", "passes")} for result in map(json.loads, lines)]


def learn_and_judge(
    student: CausalStudent, learn: Corpus, held: Corpus, labels: ProbsOf, seed: int, passes: int
) -> dict[str, float | None]:
    """Scores of a trained student, bits per label if the labels know them, and processor seconds."""
    began = time.process_time()
    scores, losses = train_and_judge(student, learn, held, labels, StudentSchedule(passes=passes, seed=seed))
    figures = {name: round(value, 5) for name, value in scores._asdict().items()}
    return {
        **figures, "bits": getattr(labels, "bits", None), "label_ce": round(statistics.mean(losses[-20:]), 5),
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def time_steps(teacher: str, kinds: Iterable[str], steps: int, arrays: Path = ARRAYS) -> None:
    """Print the duration of a step of 16 sequences, wall clock and processor."""
    learn = load(teacher, slice(LEARN.start, LEARN.start + 16 * steps), arrays)
    for name in kinds:
        labels, student = learn.kinds()[name](0), cut_teacher()
        wall, processor = time.perf_counter(), time.process_time()
        train(student, learn.documents, labels, StudentSchedule(passes=1))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"{name:32} {1e3 * wall / steps:8.0f} ms a step, {1e3 * processor / steps:8.0f} ms of processors", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", default=["sharp", "flat"])
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--codecs", type=Path, metavar="FOLDER")
    parser.add_argument("--bits", nargs="+", type=float, default=[])
    parser.add_argument("--out", type=Path, default=Path("students.jsonl"))
    parser.add_argument("--arrays", type=Path, default=ARRAYS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--time", type=int, metavar="STEPS")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not (TEACHERS / "flat.safetensors").exists():
        print(f"skipped: {TEACHERS} is not there")
        return
    keep_memory()
    for teacher in options.teachers:
        if options.measure:
            corpus = load(teacher, SCORE, options.arrays)
            for name, figures in measure_peers(text_peers(corpus.labels.shape[1], corpus.labels.head), corpus.labels).items():
                print(json.dumps({"teacher": teacher, "peer": name, **figures}), flush=True)
            continue
        if options.time:
            time_steps(teacher, kinds_of(options, teacher), options.time, options.arrays)
            continue
        kept = {"seeds": options.seeds, "passes": options.passes, "out": options.out, "arrays": options.arrays}
        if options.bits:
            run(teacher, codec_kinds(teacher, options.codecs, options.bits, options.arrays), **kept)
        run(teacher, kinds_of(options, teacher), **kept)


def kinds_of(options: argparse.Namespace, teacher: str) -> list[str]:
    """The kinds that were asked for; by default all, or none beside those of a codec."""
    if options.kinds is not None or options.bits:
        return list(options.kinds or [])
    return list(load(teacher, JUDGE, options.arrays).kinds())


if __name__ == "__main__":
    main()
