"""Fits, files and losses do not mix devices; the laws of codecs on CUDA are in tests/codecs/test_laws.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pretended_cuda import pretended_cuda
from torch import Tensor

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.precision import bf16_products
from vqlabel.labels import open_labels
from vqlabel.training import StudentTemperature, kl, mse_gt, targets, top_k
from vqlabel.workflows.encode import codec_on, encode

FITS: dict[str, tuple[bool, dict[str, Any]]] = {  # products in bf16, options
    "grouped": (False, {"slots": 2, "code_width": 3, "temperature": (20.0,)}),
    "prior and nested rates, in bf16": (True, {"slots": 2, "prior": True, "image_width": 4, "hidden": 6, "weight_bits": 5}),
    "variable": (False, {"bits": 3, "variable_rate": True, "prior": False}),
    "exact classes": (False, {"slots": 1, "exact_classes": 2, "prior": False, "temperature": (1.0,)}),
}


def test_pretended_cuda_raises_the_errors_of_cuda() -> None:
    with pretended_cuda():
        x = torch.ones(3, device="cuda")
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([0])] * torch.ones(1),
            lambda: torch.cat([x, torch.ones(3)]),
        ):
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                mixed()
        with pytest.raises(RuntimeError, match="expected a 'cuda' device type for generator"):
            torch.randperm(3, generator=torch.Generator(), device="cuda")
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        assert float((x * torch.tensor(2.0)).sum().cpu()) == 6


@pytest.fixture(scope="module")
def few(logits: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of 30 labels: every pretended operation takes a millisecond."""
    path = tmp_path_factory.mktemp("few") / "few.npy"
    np.save(path, logits[:3, :30])
    return path


@pytest.mark.parametrize("name", FITS)
def test_a_fit_on_cuda_gives_the_same_codec_as_on_the_cpu(name: str, few: Path) -> None:
    (bf16, fit_options), rng_state = FITS[name], torch.get_rng_state()
    options = {"codec": "vqae", "codebook_size": 8, "epochs": 1, **fit_options}
    with bf16_products(bf16):
        codec, report = vqlabel.fit(few, FitConfig(**options))
        with pretended_cuda():
            cuda_codec, cuda_report = vqlabel.fit(few, FitConfig(**options, device="cuda"))
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert cuda_report["held_out"] == report["held_out"]
    assert all(weight.device.type == "cpu" for weight in cuda_codec.state_dict().values())
    for (name, weight), (cuda_name, cuda_weight) in zip(codec.state_dict().items(), cuda_codec.state_dict().items(), strict=True):
        assert name == cuda_name and torch.equal(weight, cuda_weight)


def test_fits_files_and_figures_do_not_depend_on_the_default_device(
    dump: Path, tree: Path, vql: Path, codec: LabelCodec, tmp_path: Path
) -> None:
    config = FitConfig(codec="vqae", codebook_size=8, epochs=1, bits=6, prior=True, image_width=4)

    def make(folder: Path) -> tuple[Any, ...]:
        folder.mkdir()
        weights = vqlabel.fit(dump, config)[0].state_dict()
        vqlabel.pack(tree, folder / "a.vql", codec=codec)
        vqlabel.convert(vql, folder / "tree", layout="lpqld")
        vqlabel.unpack(vql, folder / "a.npy")
        figures = vqlabel.stats(vql, against=dump)
        return (
            [*map(float, next(iter(weights.values())).flatten())],
            [file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()],
            figures,
        )

    expected = make(tmp_path / "cpu")
    with torch.device("meta"):
        assert make(tmp_path / "meta") == expected


def test_files_are_encoded_opened_compared_and_unpacked_on_cuda(tree: Path, vql: Path, codec: LabelCodec, tmp_path: Path) -> None:
    dataset, batches = vqlabel.open(vql), list(open_labels(tree))
    with pretended_cuda():
        with codec_on(codec, "normal", "cuda"):
            codes = encode(codec, batches, "cuda")
        figures = vqlabel.stats(vql, against=tree, device="cuda")["distortion"]
        vqlabel.unpack(vql, tmp_path / "a.npy", device="cuda")
        labels = vqlabel.open(vql, "cuda")[[5, 3]]
        assert labels.device.type == "cuda"
        decoder, record = dataset.decoder.to("cuda"), torch.tensor([5, 3], device="cuda")
        decoded = decoder(dataset.codes(record).to("cuda"), dataset.context(record))
    assert np.array_equal(codes, encode(codec, batches, "cpu"))
    assert figures == vqlabel.stats(vql, against=tree)["distortion"]
    vqlabel.unpack(vql, tmp_path / "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert torch.equal(labels.cpu(), dataset[[5, 3]]) and torch.equal(decoded.cpu(), dataset[[5, 3]])


def losses_of(student: Tensor, labels: Tensor) -> list[Tensor]:
    losses = [kl(student, labels), kl(student, labels, 4.0, student_temperature=0.5), kl(student, top_k(labels, 3))]
    losses += [mse_gt(student, labels, labels.argmax(1)), targets(labels).sum()]
    search = StudentTemperature()
    search.update(student, labels)
    return [*losses, torch.tensor(search.step())]


def test_losses_on_cuda_equal_those_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    student, labels = (3 * torch.randn(8, 6, generator=generator) for _ in range(2))
    with pretended_cuda():
        cuda_student = student.to("cuda").requires_grad_()
        cuda_losses = losses_of(cuda_student, labels.to("cuda"))
        sum(cuda_losses[:4]).backward()
        assert cuda_student.grad is not None and cuda_student.grad.device.type == "cuda"
    cpu_student = student.clone().requires_grad_()
    losses = losses_of(cpu_student, labels)
    sum(losses[:4]).backward()
    assert [float(a.detach().cpu()) for a in cuda_losses] == [float(b.detach()) for b in losses]
    assert cpu_student.grad is not None and torch.equal(cuda_student.grad.cpu(), cpu_student.grad)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_losses_and_labels_do_not_depend_on_the_default_device_or_dtype(device: str, vql: Path) -> None:
    student, labels = torch.ones(2, 6), torch.arange(12.0).view(2, 6)
    expected, stored = losses_of(student, labels), vqlabel.open(vql)[[5, 3]]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            losses, opened = losses_of(student, labels), vqlabel.open(vql)[[5, 3]]
    finally:
        torch.set_default_dtype(before)
    assert opened.dtype == torch.float32 and torch.equal(opened, stored)
    assert all(a.dtype == torch.float32 for a in losses[:5])
    assert [float(a) for a in losses[:5]] == [float(b) for b in expected[:5]]
