"""Labels in memory, and columns beside them: read like the file of the same arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import vqlabel
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import LabelSource, Place, open_labels

N, C = 60, 7
RNG = np.random.default_rng(0)
Z = (RNG.normal(size=(N, C)) * 3).astype(np.float16)
COLUMNS = {
    "image": np.tile(np.arange(10), 6),
    "crop": (RNG.random((N, 4)) * 0.5).astype(np.float32),
    "flip": RNG.random(N) < 0.5,
    "epoch": np.repeat(np.arange(6), 10),
    "batch": np.tile(np.repeat([0, 1], 5), 6),
    "mix_index": np.tile(np.arange(5)[::-1], 12),
    "mix_lam": np.repeat(RNG.random(12), 5),
    "mix_box": np.repeat(RNG.integers(0, 9, (12, 4)), 5, 0),
}
SMALL: dict[str, Any] = {"bits": 12, "codebook_size": 8, "epochs": 2}


def same(first: LabelSource, second: LabelSource) -> bool:
    return first.about == second.about and [repr(batch) for batch in first] == [repr(batch) for batch in second]


def save_npz(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def save_tensors(path: Path, arrays: dict[str, Any]) -> Path:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("save", [save_npz, save_tensors])
def test_columns_beside_logits_are_read_at_their_records(save: Any, tmp_path: Path) -> None:
    source = open_labels(save(tmp_path / "own", {"logits": Z, **COLUMNS, "targets": np.arange(N)}))
    assert same(source, open_labels({"logits": torch.from_numpy(Z), **COLUMNS}))
    assert (source.order, list(source.places[:3])) == ("explicit", [Place(0, 0), Place(0, 1), Place(1, 0)])
    assert "; columns of the records: " in source.notes[0] and "not read: 'targets'" in source.notes[0]
    for number, batch in enumerate(source):
        rows = slice(5 * number, 5 * number + 5)
        assert (batch.labels == Z[rows]).all()
        for name in ("image", "crop", "flip", "mix_index"):
            assert (getattr(batch, name) == COLUMNS[name][rows]).all()
        assert batch.mix_lam == COLUMNS["mix_lam"][rows][0] and batch.mix_box == tuple(COLUMNS["mix_box"][rows][0])


def test_an_image_column_serves_all_epochs_of_three_axes() -> None:
    labels = Z.reshape(6, 10, C)
    source = open_labels({"logits": labels, "image": np.arange(10)[::-1], "flip": COLUMNS["flip"].reshape(6, 10)})
    batch = source.read(3)
    assert batch.image is not None and batch.flip is not None
    assert list(batch.image) == list(range(9, -1, -1)) and (batch.flip == COLUMNS["flip"][30:40]).all()
    turned = open_labels(
        {"logits": labels.swapaxes(0, 1), "image": np.arange(10)[::-1], "flip": COLUMNS["flip"].reshape(6, 10).T},
        axes="images,views,classes",
    )
    assert same(source, turned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_are_read_like_their_files(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file as save

    labels = torch.from_numpy(Z).to(dtype).requires_grad_()
    save({"logits": labels.detach()}, tmp_path / "a.safetensors")
    assert same(open_labels(labels), open_labels(tmp_path / "a.safetensors"))


def test_a_fit_and_a_file_from_memory_have_the_bytes_of_those_from_a_file(tmp_path: Path) -> None:
    memory, path = {"logits": Z, **COLUMNS}, save_npz(tmp_path / "own", {"logits": Z, **COLUMNS})
    vqlabel.fit(memory, out=tmp_path / "m.codec", **SMALL)
    codec, _ = vqlabel.fit(path, vqlabel.FitConfig(**SMALL), out=tmp_path / "f.codec")
    assert (tmp_path / "m.codec").read_bytes() == (tmp_path / "f.codec").read_bytes()
    vqlabel.pack(memory, tmp_path / "m.vql", codec=tmp_path / "m.codec")
    vqlabel.pack(path, tmp_path / "f.vql", codec=codec)
    assert (tmp_path / "m.vql").read_bytes() == (tmp_path / "f.vql").read_bytes()


def test_pack_takes_options_and_the_kind_of_a_codec(tmp_path: Path) -> None:
    vqlabel.pack(Z, tmp_path / "raw.vql", codec="raw")
    assert (vqlabel.open(tmp_path / "raw.vql")[:].numpy() == Z).all()
    assert vqlabel.pack(Z, tmp_path / "a.vql", **SMALL)["code_bits"] == 12
    with pytest.raises(UsageError, match="codec is 'topk'; it contradicts the config, whose codec is raw"):
        vqlabel.pack(Z, tmp_path / "b.vql", vqlabel.FitConfig(codec="raw"), codec="topk")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"crop": COLUMNS["crop"] * 300}, "'crop' is .* at label 0; it must be 0..1: .* divide pixels by the height and width"),
        ({"crop": COLUMNS["crop"][:9]}, r"'crop' has shape \[9, 4\]; beside labels \[60, 7\] it must be \[60, 4\]"),
        ({"flip": np.arange(N)}, "'flip' is 2 at label 2; it must be 0..1"),
        ({"image": -COLUMNS["image"]}, "'image' is -1 at label 1; it must be 0.."),
        ({"mix_index": COLUMNS["mix_index"]}, "'mix_index' is a property of a batch; add 'batch'"),
        ({"mix_lam": COLUMNS["mix_lam"], "batch": np.zeros(N, int)}, "'mix_lam' without 'mix_index'"),
        ({"batch": COLUMNS["batch"]}, "label 10 is of epoch 0, batch 0, after epoch 0, batch 1; .* give 'epoch'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(BadLabels, match=message):
        open_labels({"logits": Z, **columns})


def test_lambda_that_differs_within_a_batch_is_refused() -> None:
    source = open_labels({"logits": Z, **COLUMNS, "mix_lam": RNG.random(N)})
    with pytest.raises(BadLabels, match="labels 5 to 9 of epoch 0: 'mix_lam' differs within a batch"):
        source.read(1)


def test_pixels_are_no_column_and_are_noted() -> None:
    source = open_labels({"logits": Z, "image": np.zeros((N, 3, 2, 2), np.uint8)})
    assert source.order == "none" and "not read: 'image' uint8" in source.notes[0]


def test_log_probabilities_times_their_temperature_are_logits() -> None:
    z = torch.from_numpy(Z).float()
    labels = open_labels(4 * (z / 4).log_softmax(1)).read(0).labels
    assert torch.allclose(torch.tensor(labels).softmax(1), z.softmax(1), atol=1e-5)
