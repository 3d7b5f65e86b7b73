"""What users of Python expect of an open file: its description, `with`, pickles, and losses that know its domain."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel.errors import UsageError, WrongType
from vqlabel.training import StudentTemperature, bce, kl
from vqlabel.workflows.preprocessing import IMAGENET

Z = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32) * 3)
S = torch.from_numpy(np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("habits")
    vqlabel.pack(Z, folder / "logits.vql", codec="raw")
    vqlabel.pack({"probs": Z.softmax(2)}, folder / "probs.vql", codec="raw")
    vqlabel.pack(vqlabel.open_labels(Z, domain="sigmoid"), folder / "sigmoid.vql", codec="raw")
    return folder


def test_objects_say_what_they_are(files: Path) -> None:
    labels = vqlabel.open(files / "logits.vql")
    line = (
        f"'{files}/logits.vql': 12 labels x 5 classes, 3 epochs, logits, raw 160 bits, {labels.file.container.size / 1000:.3g} kB"
    )
    assert repr(labels) == f"VqlDataset({line})" and repr(labels.file) == f"VqlFile({line})"
    assert (labels.classes, labels.epochs, labels.codec) == (5, 3, "raw")
    of_path = vqlabel.info(files / "logits.vql")
    assert labels.info == {name: of_path[name] for name in labels.info} and labels.info["records"] == 12
    assert repr(labels.decoder) == "RawCodec(5 classes, logits, 160 bits per label)"
    assert repr(labels.batch(1, 0)) == "TrainingBatch(epoch 1, batch 0: labels [4, 5], image [4])"
    assert repr(vqlabel.StoredBatches(labels)) == f"StoredBatches('{files}/logits.vql': 3 stored epochs, 1 batches in epoch 0)"
    assert repr(StudentTemperature(grid=[1.0, 2.0])) == "StudentTemperature(tau 1, 2 candidates from 1 to 2)"


def test_a_dataset_is_closed_after_with_and_pickles_to_its_path(files: Path) -> None:
    with vqlabel.open(files / "logits.vql") as labels:
        assert (labels[:] == Z.reshape(12, 5)).all()
    assert labels.file.container._file._handle is None
    for again in (pickle.loads(pickle.dumps(labels)), copy.copy(labels)):
        assert (again[3] == Z[0, 3]).all()
    assert not {"__getstate__", "__setstate__"} & set(vars(vqlabel.VqlDataset)) - {"__module__"}


def test_the_home_folder_is_expanded(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(files))
    assert len(vqlabel.open("~/logits.vql")) == 12 and vqlabel.info("~/logits.vql")["records"] == 12


def test_an_unknown_device_is_refused(files: Path) -> None:
    with pytest.raises(UsageError, match="device is 'gpuu'; it must be cpu, cuda"):
        vqlabel.open(files / "logits.vql", "gpuu")


def test_the_loss_of_a_dataset_knows_its_domain(files: Path) -> None:
    logits, probs, sigmoid = (vqlabel.open(files / f"{name}.vql") for name in ("logits", "probs", "sigmoid"))
    assert torch.equal(logits.loss(S, logits[:], 4.0), kl(S, logits[:], 4.0))
    assert torch.equal(probs.loss(S, probs[:]), kl(S, probs[:], 1.0, domain="probs"))
    assert torch.equal(sigmoid.loss(S, sigmoid[:]), bce(S, sigmoid[:]))


def test_rows_that_contradict_the_domain_are_refused() -> None:
    with pytest.raises(
        UsageError, match="every row sums to 1, so they are probabilities, but domain is 'logits'; pass domain='probs'"
    ):
        kl(S, S.softmax(1))
    for labels in (S, S.abs() * 9, torch.zeros_like(S)):
        with pytest.raises(UsageError, match="so they are no probabilities, but domain is 'probs'; pass domain='logits'"):
            kl(S, labels, 1.0, domain="probs")


def test_images_and_a_network_in_memory_are_relabelled(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(12, 5))
    images = torch.rand(6, 3, 10, 12)
    result = vqlabel.relabel(images, tmp_path / "a.vql", teacher=net, epochs=2, view=8, batch=4, mix="mixup", dtype="f32")
    assert (result["records"], result["classes"]) == (12, 5)
    views, labels, _, _ = vqlabel.VqlViews(tmp_path / "a.vql", images)[:]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    assert torch.allclose(net((views - mean) / std), labels, atol=1e-5)
    with pytest.raises(UsageError, match=r"images range from -.*; floats must be in 0\.\.1: undo the normalisation"):
        vqlabel.relabel(images - 0.5, tmp_path / "b.vql", teacher=net)
    with pytest.raises(WrongType, match="unknown argument 'epoch'; options are epochs"):
        vqlabel.relabel(images, tmp_path / "b.vql", teacher=net, epoch=2)  # type: ignore[call-arg]
