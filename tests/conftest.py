"""Shared fixtures: labels of a small teacher as an array and as a dump of batches, their codec, and their `.vql`."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vqlabel
from vqlabel import FitConfig, LabelBatch, VqlDataset
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.precision import bf16_products
from vqlabel.config import MIX
from vqlabel.labels import About, Place, writing
from vqlabel.threads import named_threads

os.environ["VQLABEL_PROGRESS"] = "off"  # tests compare stderr; a busy machine would print lines of progress there

EPOCHS, IMAGES, CLASSES, BATCH = 6, 60, 40, 16
HEIGHT, WIDTH = 48, 64  # pixels of every image; crops have integer coordinates


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: synchronisation costs more than it gains for matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with named_threads(1):
        yield
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bf16", action="store_true", help="run fits with bf16 products, native or emulated, unless a test sets the precision"
    )


@pytest.fixture(scope="session", autouse=True)
def _one_precision(pytestconfig: pytest.Config) -> Iterator[None]:
    """Fix the precision of products, which otherwise depends on the machine."""
    with bf16_products(bool(pytestconfig.getoption("--bf16"))):
        yield


def draw_logits(epochs: int, images: int, classes: int, *, rank: int = 6, seed: int = 0) -> NDArray[np.float16]:
    """[epochs, images, classes]: a vector per image, perturbed every epoch, times a matrix of this rank, plus noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(images, rank))
    view = image + 0.3 * rng.normal(size=(epochs, images, rank))
    logits = 1.5 * view @ rng.normal(size=(rank, classes)) + 0.1 * rng.normal(size=(epochs, images, classes))
    return logits.astype(np.float16)


def to_probs(logits: NDArray[np.floating]) -> NDArray[np.float16]:
    """Softmax over the last axis."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return (exponentials / exponentials.sum(-1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="session")
def logits() -> NDArray[np.float16]:
    """[6, 60, 40] fp16."""
    return draw_logits(EPOCHS, IMAGES, CLASSES)


@pytest.fixture(scope="session")
def probs(logits: NDArray[np.float16]) -> NDArray[np.float16]:
    """[6, 60, 40] fp16: the same teacher's probabilities."""
    return to_probs(logits)


@pytest.fixture(scope="session")
def dump(logits: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The labels as one array [6, 60, 40]: row i of every epoch belongs to image i."""
    path = tmp_path_factory.mktemp("dump") / "logits.npy"
    np.save(path, logits)
    return path


@pytest.fixture(scope="session")
def batches(logits: NDArray[np.float16]) -> list[LabelBatch]:
    """The labels in batches of 16 with shuffled images, crops, flips and CutMix boxes, as in SRe2L's dumps."""
    rng, batches = np.random.default_rng(1), []
    for epoch in range(EPOCHS):
        order = rng.permutation(IMAGES)
        for number, image in enumerate(np.split(order, range(BATCH, IMAGES, BATCH))):
            n = len(image)
            height, width = rng.integers(8, HEIGHT + 1, n), rng.integers(8, WIDTH + 1, n)
            top, left = rng.integers(0, HEIGHT + 1 - height), rng.integers(0, WIDTH + 1 - width)
            pixels = np.stack([top, left, height, width], 1)
            row, column = (int(v) for v in rng.integers(0, 100, 2))
            batches.append(
                LabelBatch(
                    labels=logits[epoch, image],
                    place=Place(epoch, number),
                    image=image.astype(np.int64),
                    crop=(pixels / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
                    flip=rng.random(n) < 0.5,
                    mix_index=rng.permutation(n),
                    mix_lam=float(rng.random()),
                    mix_box=(row, column, row + 50, column + 70),
                )
            )
    return batches


WriteDump = Callable[..., Path]


@pytest.fixture(scope="session")
def write_dump() -> WriteDump:
    """Write batches in any layout; `about` overrides the defaults, fp16 logits of known images."""

    def write(folder: Path, batches: Iterable[LabelBatch], layout: str = "lpld", **about: Any) -> Path:
        batches = list(batches)
        defaults = {"classes": batches[0].labels.shape[1], "domain": "logits", "dtype": "F16", "order": "explicit"}
        with writing(folder, About(layout=layout, **{**defaults, **about}), layout) as writer:
            for batch in batches:
                writer.add(batch)
        return folder

    return write


@pytest.fixture(scope="session")
def tree(batches: list[LabelBatch], write_dump: WriteDump, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The batches as a dump in LPLD's layout."""
    return write_dump(tmp_path_factory.mktemp("tree") / "dump", batches)


@pytest.fixture(scope="session")
def config() -> FitConfig:
    """Four slots of 8 codes, no prior, several temperatures; two epochs are enough for a useful codec."""
    return FitConfig(bits=12, codebook_size=8, prior=False, epochs=2, temperature=MIX)


@pytest.fixture(scope="session")
def codec_file(dump: Path, config: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec fitted to the labels."""
    path = tmp_path_factory.mktemp("codec") / "small.codec"
    vqlabel.fit(dump, config, out=path)
    return path


@pytest.fixture
def codec(codec_file: Path) -> LabelCodec:
    """A new instance of the codec, which a test may modify."""
    return vqlabel.load_codec(codec_file)[0]


@pytest.fixture(scope="session")
def vql(tree: Path, codec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump `tree`, packed with that codec."""
    path = tmp_path_factory.mktemp("vql") / "small.vql"
    vqlabel.pack(tree, path, codec=vqlabel.load_codec(codec_file)[0])
    return path


@pytest.fixture(scope="session")
def prior_codec_file(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec with a prior, fitted to `tree`; the prior uses all columns of the dump."""
    path = tmp_path_factory.mktemp("prior") / "prior.codec"
    config = FitConfig(bits=6, codebook_size=8, prior=True, image_width=4, hidden=8, weight_bits=4, temperature=MIX, epochs=2)
    vqlabel.fit(tree, config, out=path)
    return path


@pytest.fixture
def prior_codec(prior_codec_file: Path) -> LabelCodec:
    return vqlabel.load_codec(prior_codec_file)[0]


@pytest.fixture(scope="session")
def prior_vql(tree: Path, prior_codec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump `tree`, packed with the codec that has a prior."""
    path = tmp_path_factory.mktemp("prior_vql") / "prior.vql"
    vqlabel.pack(tree, path, codec=vqlabel.load_codec(prior_codec_file)[0])
    return path


@pytest.fixture(scope="module")
def short_fits() -> Iterator[None]:
    """Two epochs instead of the default number, for tests of what surrounds a fit and cannot name the number."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("vqlabel.codecs.vqae.fit.train", "vqlabel.workflows.tune_search"):
            patch.setattr(f"{module}.default_epochs", lambda _sample: 2)
        yield


@pytest.fixture
def dataset(vql: Path) -> VqlDataset:
    """The `.vql`, opened for training."""
    return vqlabel.open(vql)


@pytest.fixture(scope="session")
def draw_images() -> Callable[..., Path]:
    """Write images of noise as PNG, which is lossless; image i goes into the folder `folder_of(i)`."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra student): there are no images")

    def draw(root: Path, count: int, height: int, width: int, folder_of: Callable[[int], str]) -> Path:
        rng = np.random.default_rng(0)
        for index in range(count):
            file = root / folder_of(index) / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file)
        return root

    return draw
