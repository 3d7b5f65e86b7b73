"""README.md, CONTRIBUTING.md and the pages of docs/: python and console blocks run; options, scripts and links exist.

The blocks of a page run in order, in one folder with small inputs under the names that the pages use; python blocks of
a page share their names. A block that cannot run has a comment with the reason above it: `<!-- not run: REASON -->`.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from paths import ROOT
from text_corpus import small_split, write_head, write_hidden_states
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import vqlabel
from vqlabel import LabelBatch
from vqlabel.cli import app
from vqlabel.errors import UsageError
from vqlabel.labels import LAYOUTS, Place, open_labels
from vqlabel.labels.layouts.tree import simulated_orders

pytestmark = pytest.mark.usefixtures("short_fits")

PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md")))
}
NEEDED_LIBRARY = {  # of a page; where it is not installed, the page's blocks do not run
    "docs/frameworks/accelerate.md": "accelerate",
    "docs/frameworks/hugging-face-trainer.md": "transformers",
    "docs/frameworks/lightning.md": "lightning",
    "docs/frameworks/stateful-dataloader.md": "torchdata.stateful_dataloader",
}
LANGUAGES = ("python", "console", "diff", "json", "text")
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>\S[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SMALLER = {  # setting on a page -> setting for a dump of 360 labels, so that a test takes seconds
    "--bits 64": "--bits 16",
    "bits=64": "bits=16, epochs=1",
    "--ratio 200": "--ratio 2",
    "--ratio 500": "--ratio 2",
    "--bits 32": "--bits 8",
    "--bits 8 16 32 64 128 256": "--bits 16 --methods topk,int8",
    "--bits 8 16 32 64": "--bits 8 --methods token_vqae,topk",
    "--bits 16 32 --methods vqae,topk,rq": "--bits 16 --methods topk --passes 1",
    "--teacher module:function -o": "--teacher module:function --epochs 2 -o",
    "--teacher model/": "--teacher module:language_model",
    "--epochs 300": "--epochs 2",
    "--epochs 8": "--epochs 2",
    "range(300)": "range(2)",
    "range(1, 301)": "range(1, 3)",
    "batches.epoch, 300": "batches.epoch, 2",
    "num_train_epochs=300": "num_train_epochs=2, use_cpu=True",
    "max_epochs=300": "max_epochs=2, accelerator='cpu'",
    "0, 300": "0, 2",
    'state["epoch"], 300': 'state["epoch"], 2',
    "Accelerator()": "Accelerator(cpu=True)",
    "num_workers=4, pin_memory=True, persistent_workers=True": "num_workers=0",
    "num_workers=4": "num_workers=0",
}
TEACHER = """
import torch
def function():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 40))
def language_model(tokens, mask):
    return language_model.head[(7 * tokens + 3) % 60]
language_model.head = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
"""
FOREIGN_OPTIONS = {  # options of other programs that pages mention
    "--fkd-path", "--mix-type", "--batch-size", "--granularity", "--softlabel_path", "--soft_label_type",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the number of its first line in the page, `reason` explains why it cannot run."""

    line: int
    language: str
    text: str
    reason: str | None

    def commands(self) -> list[str]:
        """The command lines, with continuations joined: those that begin with "$ ", or all lines if none does."""
        lines = [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return prompted or lines


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = PAGES[page]
    return [
        Block(text.count("\n", 0, match.start("text")) + 1, match["language"], match["text"], match["reason"])
        for match in FENCE.finditer(text)
    ]


def runs(block: Block) -> bool:
    """Whether a test runs the block."""
    return block.language in ("python", "console") and block.reason is None


RUNNING = [page for page in PAGES if any(map(runs, blocks_of(page)))]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def options_of(command: str) -> set[str]:
    """The options of a command of vqlabel."""
    return {option for parameter in COMMANDS[command].params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page: str) -> None:
    fences = len(re.findall("^```", PAGES[page], re.MULTILINE))
    assert fences == 2 * len(blocks_of(page)), f"{page}: a fence is not closed"
    assert [f"{page}:{block.line}" for block in blocks_of(page) if block.language not in LANGUAGES] == []


def test_pages_have_blocks_that_run() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page) if runs(block)]
    assert len(blocks) > 20
    assert {block.language for block in blocks} == {"python", "console"}


def test_every_smaller_setting_replaces_one_that_a_page_names() -> None:
    text = "".join(block.text for page in PAGES for block in blocks_of(page) if runs(block))
    assert [setting for setting in SMALLER if setting not in text] == []


@pytest.fixture(scope="module")
def inputs(
    tree: Path, logits: NDArray[np.float16], draw_images: Callable[..., Path], write_dump: Callable[..., Path],
    prior_codec_file: Path, prior_vql: Path, tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """A folder of dumps, images, a teacher, a codec and a `.vql` file, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(tree, folder / "dump")
    shutil.copy(prior_codec_file, folder / "codec.safetensors")
    shutil.copy(prior_vql, folder / "labels.vql")
    draw_images(folder / "images" / "train", 60, 48, 64, lambda image: f"{class_of(image):02}")
    draw_images(folder / "val", 6, 48, 64, lambda image: f"{image // 3}")
    write_dump(folder / "sre2l_dump", sre2l_batches(logits.shape[2]), "sre2l")
    for link, target in {"DUMP": "dump", "train": "images/train", "syn_data": "images/train"}.items():
        (folder / link).symlink_to(target)
    (folder / "module.py").write_text(TEACHER)
    (folder / "teacher.safetensors").write_bytes(bytes(1000))
    np.save(folder / "val.npy", logits[0, :6].astype(np.float32))
    (folder / "classes.json").write_text('{"0": 3, "1": 7}')
    np.savez(folder / "logits.npz", teacher_logits=logits[0], features=logits[1])
    np.save(folder / "views.npy", logits.swapaxes(0, 1))
    write_hidden_states(folder / "hidden_states", small_split(12))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"input_ids": text}) + "\n" for text in predictable_texts()))
    (folder / "model").mkdir()
    write_head(folder / "model")
    pyarrow.parquet.write_table(pa.table({"logits": list(logits[0]), "image": range(60)}), folder / "set.parquet")
    return folder


def class_of(image: int) -> int:
    """The class of an image, for 60 images in 40 classes."""
    return image * 40 // 60


def sre2l_batches(classes: int) -> Iterable[LabelBatch]:
    """Two epochs in the order of SRe2L's shuffle, each label largest at the class of its image."""
    rng = np.random.default_rng(0)
    for epoch, order in enumerate(simulated_orders(60, 2, draws=2)):
        for number, (start, stop) in enumerate(pairwise([0, 16, 32, 48, 60])):
            image = order[start:stop]
            labels = rng.normal(size=(len(image), classes)).astype(np.float16)
            labels[np.arange(len(image)), [class_of(int(index)) for index in image]] += 9
            crop = np.tile(np.array([0, 0, 1, 1], np.float32), (len(image), 1))
            flip = np.zeros(len(image), np.bool_)
            yield LabelBatch(labels=labels, place=Place(epoch, number), image=image, crop=crop, flip=flip)


@pytest.fixture
def workspace(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `inputs` as the working directory, in which one block may overwrite the files of another."""
    folder = shutil.copytree(inputs, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "module", raising=False)
    for name in ("fit", "pack"):
        monkeypatch.setattr(vqlabel, name, partial(getattr(vqlabel, name), overwrite=True))
    return folder


def names_of_the_reader() -> dict[str, Any]:
    """Names that python blocks take from the reader's own program."""
    return {
        "student": nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 40)),
        "images": torch.zeros(60, 3, 32, 32),
        "augment": lambda images, batch: images,
        "normalize": lambda views: views,
        "train_step": lambda *batch: None,
        "T": 4.0,
        **names_of_a_language_model(),
    }


def predictable_texts() -> list[list[int]]:
    """Documents of which every token follows from the one before it, as in `module.language_model`."""
    texts = [[start] for start in range(20)]
    for text in texts:
        while len(text) < 12:
            text.append((7 * text[-1] + 3) % 60)
    return texts


def names_of_a_language_model() -> dict[str, Any]:
    """A document of `small_split`, as a batch; a batch of `predictable_texts`; and a student."""
    texts = small_split(12).documents
    tokens = torch.from_numpy(texts.take(np.array([3]))[0].tokens)[None]
    text = torch.tensor(predictable_texts()[:4])
    batches = [(text, torch.ones_like(text))]
    model, lm_head = nn.Embedding(60, 8), nn.Linear(8, 60)
    return {
        "tokens": tokens,
        "mask": torch.ones_like(tokens),
        "batches": batches,
        "model": model,
        "lm_head": lm_head,
        "optimizer": torch.optim.SGD([*model.parameters(), *lm_head.parameters()], 0.1),
    }


@pytest.mark.filterwarnings("ignore:.*any folder passes", "ignore:.*cannot be checked", "ignore:.*pin_memory")
@pytest.mark.parametrize("page", RUNNING)
def test_the_blocks_of_a_page_run(page: str, workspace: Path) -> None:
    if page in NEEDED_LIBRARY:
        pytest.importorskip(NEEDED_LIBRARY[page])
    names = names_of_the_reader()
    for block in filter(runs, blocks_of(page)):
        text = smaller(block.text)
        if block.language == "python":
            exec(compile(text, f"{page}, block at line {block.line}", "exec"), names)
        else:
            for command in Block(block.line, "console", text, None).commands():
                run_command(command, f"{page}, block at line {block.line}: {command}")


def test_readme_goes_from_a_corpus_to_a_training_step_in_ten_lines(workspace: Path) -> None:
    section = PAGES["README.md"].partition("## Language models")[2].partition("\n## ")[0]
    (console, command), (python, program) = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert (console, python) == ("console", "python")
    assert len([line for line in (command + program).splitlines() if line]) == 10
    names = names_of_a_language_model()
    before = names["lm_head"].weight.detach().clone()
    run_command(smaller(command), "README.md, Language models")
    exec(program, names)
    assert command.startswith("vqlabel relabel --text corpus.jsonl --teacher ")
    assert names["labels"].file.container.path.name == "text.vql"
    assert 0 < names["loss"].item() < 20
    assert (names["lm_head"].weight != before).any()


def smaller(text: str) -> str:
    """The block with the settings of SMALLER, longer ones first, each replaced once."""
    pattern = "|".join(rf"{re.escape(setting)}(?![\d ]*\d)" for setting in sorted(SMALLER, key=len, reverse=True))
    return re.sub(pattern, lambda match: SMALLER[match[0]], text)


def quick(arguments: list[str]) -> list[str]:
    """The command with one epoch of training if it fits a codec, and with --overwrite if it has that option."""
    fits = arguments[0] in ("fit", "tune", "pack") and "--codec" not in arguments
    rate = fits and not {"--bits", "--ratio", "--bytes", "--kl"} & set(arguments)
    return [
        *arguments,
        *(["--epochs", "1"] if fits else []),
        *(["--bits", "16"] if rate else []),
        *(["--minutes", "0.02"] if arguments[0] == "tune" else []),
        *(["--overwrite"] if "--overwrite" in options_of(arguments[0]) else []),
    ]


def run_command(command: str, where: str) -> None:
    """Run a line of a console block; it must succeed."""
    program, *arguments = shlex.split(command, comments=True)
    if program == "vqlabel":
        result = CliRunner().invoke(app, quick(arguments), prog_name="vqlabel")
        assert result.exit_code == 0, f"{where}\n{result.stderr}\n{result.exception!r}"
    elif program == "python" and arguments[0] == "-c":
        exec(arguments[1], {})
    elif program == "xxd":
        if shutil.which("xxd"):
            subprocess.run([program, *arguments], check=True, capture_output=True)
    else:
        pytest.fail(f"{where}: {program} cannot run in a test; mark the block <!-- not run: REASON -->")


COMMAND_LINES = [
    (f"{page}:{block.line}", command)
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "console"
    for command in block.commands()
]


@pytest.mark.parametrize(("where", "command"), COMMAND_LINES)
def test_a_command_names_a_script_and_options_that_exist(where: str, command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if "=" not in word or word.startswith("-")]
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "vqlabel":
        assert named <= options_of(words[1]), where
    elif words[0] == "python" and words[1].endswith(".py"):
        source = (ROOT / words[1]).read_text()
        assert [option for option in named if not re.search(rf'"(--)?{option[2:]}"', source)] == [], where


@pytest.mark.parametrize("page", PAGES)
def test_prose_names_options_that_exist(page: str) -> None:
    scripts = "".join(file.read_text() for folder in ("examples", "tests/benchmarks") for file in (ROOT / folder).glob("*.py"))
    known = FOREIGN_OPTIONS.union({"--help", "--install-completion"}, *map(options_of, COMMANDS)) | set(
        re.findall(r'"(--[a-z][\w-]*)"', scripts)
    )
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", PAGES[page]))
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named <= known


def test_the_layout_on_the_contributing_page_reads_its_own_files(
    dump: Path, tree: Path, logits: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    block = next(block for block in blocks_of("CONTRIBUTING.md") if "EpochsSource" in block.text)
    exec(block.text, names)
    monkeypatch.setitem(LAYOUTS, "epochs", names["LAYOUT"])
    vqlabel.convert(dump, tmp_path / "epochs", layout="epochs")
    source = open_labels(tmp_path / "epochs")
    assert [place.epoch for place in source.places] == list(range(len(logits)))
    np.testing.assert_array_equal([batch.labels for batch in source], logits)
    with pytest.raises(UsageError, match="epochs holds whole epochs in the order of their images"):
        vqlabel.convert(tree, tmp_path / "other", layout="epochs")


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_existing_files_and_headings(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", FENCE.sub("", PAGES[page]))
    for target, anchor in links:
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} links to {target}, which does not exist"
        assert not anchor or anchor in anchors_of(file.read_text()), (
            f"{page} links to {target}#{anchor}: {file.name} has no such heading"
        )
