"""`VqlDataset`: labels by index, by stored batch and as codes, also in DataLoader workers."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vqlabel
from vqlabel import FitConfig, LabelBatch, VqlDataset
from vqlabel.codecs import LabelCodec
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import open_labels


@pytest.fixture
def decoded(tree: Path, codec: LabelCodec) -> Tensor:
    """[360, 40] labels of the dump, encoded and decoded without a file."""
    raw = torch.from_numpy(np.concatenate([batch.labels for batch in open_labels(tree)]))
    with torch.no_grad():
        return codec.decode(codec.encode(raw))


def same(actual: Tensor, expected: Tensor) -> None:
    """Compare up to the rounding of a matrix product, which depends on its size."""
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_the_dataset_has_the_shape_and_domain_of_the_dump(dataset: VqlDataset) -> None:
    assert len(dataset) == 360
    assert dataset.shape == (360, 40)
    assert dataset.domain == "logits"


@pytest.mark.parametrize("index", [0, 7, 359, -1, -360, np.int64(5), np.uint8(200), torch.tensor(9)], ids=str)
def test_an_integer_index_returns_one_label(index: Any, dataset: VqlDataset, decoded: Tensor) -> None:
    assert dataset[index].shape == (40,)
    same(dataset[index], decoded[int(index)])


@pytest.mark.parametrize(
    "index",
    [
        [3, 1, 4, 1, -5],
        (3, 1),
        np.array([359, 0]),
        np.array([-1], np.int8),
        torch.tensor([100, 3, 200]),
        range(20, 30),
        slice(None),
        slice(10, 20),
        slice(-3, None),
        slice(50, 10, -7),
        slice(5, 5),
        [],
    ],
    ids=str,
)
def test_a_sequence_or_slice_returns_a_batch_of_labels(index: Any, dataset: VqlDataset, decoded: Tensor) -> None:
    records = np.arange(360)[index] if isinstance(index, slice) else np.arange(360)[np.asarray(index, np.int64)]
    records = records.copy()  # torch supports no negative strides
    assert dataset[index].shape == (len(records), 40)
    same(dataset[index], decoded[records])


@pytest.mark.parametrize("index", [360, -361, [0, 360], [5, -361], torch.tensor([1000]), 1 << 40], ids=str)
def test_an_index_out_of_range_raises_index_error(index: Any, dataset: VqlDataset) -> None:
    with pytest.raises(IndexError, match=r"record -?\d+ is out of range; the file has records 0:360"):
        dataset[index]
    with pytest.raises(IndexError, match=r"record -?\d+ is out of range; the file has records 0:360"):
        dataset.codes(index)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([True, False], "indices are bool; they must be integers"),
        (1.5, "indices are float64; they must be integers"),
        ("3", "they must be integers"),
        ([[0, 1], [2, 3]], r"indices have shape \[2, 2\]; they must be one integer or a list of integers"),
    ],
)
def test_an_index_of_another_type_or_shape_is_refused(index: Any, message: str, dataset: VqlDataset) -> None:
    with pytest.raises(UsageError, match=message):
        dataset[index]


def test_getitems_returns_a_list_of_labels(dataset: VqlDataset, decoded: Tensor) -> None:
    found = dataset.__getitems__([9, 2, 9])
    assert isinstance(found, list)
    same(torch.stack(found), decoded[[9, 2, 9]])


def test_iteration_ends_after_the_last_record(dataset: VqlDataset) -> None:
    assert len(list(dataset)) == 360


def test_codes_decoded_in_the_loop_equal_the_labels(dataset: VqlDataset, decoded: Tensor, codec: LabelCodec, tree: Path) -> None:
    records = [300, 2, 77, -1]
    codes = dataset.codes(records)
    assert codes.dtype == torch.uint8
    assert codes.shape == (4, 4)
    assert codes.device.type == "cpu"
    raw = torch.from_numpy(np.concatenate([batch.labels for batch in open_labels(tree)]))
    assert torch.equal(codes.int(), codec.encode(raw)[records])
    with torch.no_grad():
        same(dataset.decoder(codes), decoded[records])
    assert dataset.codes([]).shape == (0, 4)


def test_codes_above_255_are_returned_as_int32(dump: Path, tmp_path: Path, logits: NDArray[np.float16]) -> None:
    vqlabel.pack(dump, tmp_path / "a.vql", codec=vqlabel.fit(dump, FitConfig(slots=2, codebook_size=512, epochs=1))[0])
    dataset = vqlabel.open(tmp_path / "a.vql")
    assert dataset.codes([0, 1]).dtype == torch.int32
    assert int(dataset.codes(range(360)).max()) > 255
    vqlabel.pack(dump, tmp_path / "raw.vql", codec=vqlabel.fit(dump, FitConfig(codec="raw"))[0])
    raw = vqlabel.open(tmp_path / "raw.vql")
    assert torch.equal(raw[60:120], torch.from_numpy(logits[1]).float())
    assert torch.equal(raw.decoder(raw.codes([60])), raw[[60]])


def test_stored_batches_have_the_augmentation_of_their_views(
    dataset: VqlDataset, batches: list[LabelBatch], decoded: Tensor
) -> None:
    assert dataset.places == [batch.place for batch in batches]
    first = 0
    for found, want in zip(dataset.batches(), batches, strict=True):
        assert (found.place, found.mix_lam, found.mix_box) == (want.place, want.mix_lam, want.mix_box)
        for name in ("image", "crop", "flip", "mix_index"):
            np.testing.assert_array_equal(getattr(found, name), getattr(want, name), strict=True)
        same(found.labels, decoded[first : first + len(want)])
        first += len(want)
    assert first == 360


def test_one_epoch_and_one_batch_can_be_selected(dataset: VqlDataset) -> None:
    epoch = list(dataset.batches(4))
    assert [batch.place for batch in epoch] == [(4, 0), (4, 1), (4, 2), (4, 3)]
    one = dataset.batch(4, 2)
    assert one.place == (4, 2)
    same(one.labels, epoch[2].labels)
    assert torch.equal(one.image, epoch[2].image)
    with pytest.raises(UsageError, match=r"no batch of epoch 6; it has 6 epochs: 0, 1, 2, 3, 4, 5$"):
        dataset.batches(6)
    with pytest.raises(UsageError, match=r"no batch 4 of epoch 0; it has 24 batches, see ds\.places"):
        dataset.batch(0, 4)


def test_columns_that_the_dump_lacks_are_none(dump: Path, codec: LabelCodec, tmp_path: Path) -> None:
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    batch = vqlabel.open(tmp_path / "a.vql").batch(3, 0)
    assert (batch.crop, batch.flip, batch.mix_index, batch.mix_lam, batch.mix_box) == (None,) * 5
    assert batch.image is not None
    assert batch.image.tolist() == list(range(60))


def test_the_context_of_a_record_is_its_row_of_its_batch(dataset: VqlDataset, batches: list[LabelBatch]) -> None:
    batch, record = batches[6], sum(map(len, batches[:6])) + 5
    context = dataset.context([record, 0])
    assert batch.image is not None
    assert batch.mix_index is not None
    assert context.image[0] == batch.image[5]
    assert context.partner[0] == batch.image[batch.mix_index[5]]
    assert context.mix[0] == np.float32(batch.mix_lam)
    np.testing.assert_array_equal(context.crop[0], batch.crop[5])
    np.testing.assert_array_equal(context.box[0], batch.mix_box)
    assert context.flip[0] == batch.flip[5]


def test_labels_can_be_targets_of_a_loss(dataset: VqlDataset) -> None:
    """A loss saves its target for the backward pass."""
    student = torch.zeros(10, 40, requires_grad=True)
    for target in (
        dataset[0:10],
        dataset[list(range(10))],
        dataset.batch(0, 0).labels[:10],
        torch.stack(dataset.__getitems__(list(range(10)))),
    ):
        student.grad = None
        F.kl_div(F.log_softmax(student, 1), F.softmax(target, 1), reduction="batchmean").backward()
        (student * target).sum().backward()
        assert student.grad is not None
        assert not target.requires_grad
        target += 1  # writable


def test_the_decoder_requires_no_gradient_and_can_be_fine_tuned(dataset: VqlDataset) -> None:
    assert not dataset.decoder(dataset.codes([0, 1])).requires_grad
    dataset.decoder.requires_grad_(True)
    dataset.decoder(dataset.codes([0, 1])).sum().backward()
    assert all(weight.grad is not None for weight in dataset.decoder.parameters())


def test_moving_the_decoder_does_not_move_the_dataset(dataset: VqlDataset, decoded: Tensor) -> None:
    assert next(dataset.decoder.to("meta").parameters()).is_meta  # stands for a move to a GPU
    same(dataset[[5, 300]], decoded[[5, 300]])
    assert dataset.batch(0, 0).labels.device.type == "cpu"


@pytest.mark.parametrize("start", [None, *multiprocessing.get_all_start_methods()])
def test_a_data_loader_returns_the_same_labels_with_every_start_method(start: str | None, vql: Path, decoded: Tensor) -> None:
    dataset = vqlabel.open(vql)
    same(dataset[0], decoded[0])  # the file is open and the decoder loaded before the workers start
    workers = {None: 0, "fork": 2}.get(start, 1)  # any other method imports torch in every worker
    loader = DataLoader(dataset, batch_size=50, num_workers=workers, multiprocessing_context=start)
    found = list(loader)
    assert [len(part) for part in found] == [50] * 7 + [10]
    same(torch.cat(found), decoded)
    same(dataset[-1], decoded[-1])


def test_the_dataset_pickles_to_its_path(dataset: VqlDataset, decoded: Tensor) -> None:
    same(dataset[5], decoded[5])
    data = pickle.dumps(dataset)
    assert len(data) < 500
    again = pickle.loads(data)
    assert (again.path, again.device, again.shape) == (dataset.path, dataset.device, dataset.shape)
    same(again[5], decoded[5])


def test_labels_of_a_probs_file_are_probabilities(probs: NDArray[np.float16], tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", probs)
    source = open_labels(tmp_path / "probs.npy", domain="probs")
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(bits=12, epochs=1))[0])
    dataset = vqlabel.open(tmp_path / "a.vql")
    assert dataset.domain == "probs"
    torch.testing.assert_close(dataset[:].sum(1), torch.ones(360))


def test_a_missing_file_and_a_file_of_another_format_are_refused(tmp_path: Path, dump: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.vql: no such file; name a \.vql file"):
        vqlabel.open(tmp_path / "nothing.vql")
    with pytest.raises(BadContainer, match=r"logits\.npy: not a \.vql file but a \.npy file"):
        vqlabel.open(dump)
