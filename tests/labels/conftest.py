"""Dumps as other systems write them, for all tests of the labels layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from vqlabel.labels import open_labels
from vqlabel.labels.sparse import as_dense

SPECIAL = (-0.0, 6e-8, -65504.0, 65504.0, 1.0)  # minus zero, a subnormal fp16, the extreme fp16 values
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def draw() -> Callable[..., torch.Tensor]:
    """Logits of any shape and type, including values that careless code changes."""

    def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 5
        values.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
        return values.to(dtype)

    return draw


@pytest.fixture(scope="session")
def write_array() -> Write:
    """Write one array under `name`; the suffix of `path` is .npy, .npz, .packed.npz (compressed) or .safetensors."""

    def write(path: Path, array: torch.Tensor, name: str = "logits", metadata: dict[str, str] | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({name: array.contiguous()}, path, metadata)
        elif path.suffix == ".npy":
            np.save(path, array.numpy())
        else:
            (np.savez_compressed if ".packed" in path.suffixes else np.savez)(path, **{name: array.numpy()})
        return path

    return write


@pytest.fixture(scope="session")
def sre2l_items() -> Callable[..., list[Any]]:
    """The six items of SRe2L's relabel/generate_soft_label.py:save for these logits, as its mix_aug returns them."""

    def items(logits: torch.Tensor, mix: str | None = "cutmix", seed: int = 0) -> list[Any]:
        rng, b = np.random.default_rng(seed), len(logits)
        crop = torch.from_numpy(rng.random((b, 4), dtype=np.float32))
        flip = torch.from_numpy(rng.random(b) < 0.5)
        if mix is None:
            return [crop, flip, None, None, None, logits]
        index = torch.from_numpy(rng.permutation(b))
        if mix == "mixup":
            return [crop, flip, index, float(rng.beta(0.8, 0.8)), None, logits]
        box = list(np.sort(rng.integers(0, 224, 4)))  # numpy.int64
        lam = 1 - ((box[2] - box[0]) * (box[3] - box[1]) / (224 * 224))  # a numpy.float64
        return [crop, flip, index, lam, box, logits]

    return items


@pytest.fixture(scope="session")
def write_sre2l() -> Write:
    """torch.save as SRe2L calls it: any items, into epoch_E/batch_B.tar. Returns the file."""

    def write(folder: Path, items: Any, epoch: int = 0, batch: int = 0, **how: Any) -> Path:
        (folder / f"epoch_{epoch}").mkdir(parents=True, exist_ok=True)
        file = folder / f"epoch_{epoch}" / f"batch_{batch}.tar"
        torch.save(items, file, **how)
        return file

    return write


@pytest.fixture(scope="session")
def read_all() -> Callable[..., NDArray[np.floating]]:
    """All labels of a dump, in order."""
    return lambda path, **how: np.concatenate([as_dense(batch.labels) for batch in open_labels(path, **how)])
