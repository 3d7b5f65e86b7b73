"""Pruned dumps: of the requested size, fixed by the seed, every record with its own image, crop and partner."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vqlabel
from vqlabel.errors import UsageError
from vqlabel.labels import LabelBatch, open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.vql.file import VqlFile

COLUMNS = ("image", "crop", "flip")


@pytest.mark.parametrize(("by", "places", "records"), [("epoch", 12, 180), ("batch", 12, None), ("view", 24, 180)])
def test_pruning_to_one_half_keeps_half_of_the_epochs_batches_or_views(
    by: str, places: int, records: int | None, tree: Path
) -> None:
    kept = Pruned(open_labels(tree), 0.5, by)
    assert len(kept.places) == places and list(kept.places) == sorted(kept.places)
    assert records is None or sum(len(batch) for batch in kept) == records
    if by == "epoch":
        assert len({place.epoch for place in kept.places}) == 3


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_different_seeds_keep_different_parts(by: str, tree: Path) -> None:
    def seen(seed: int) -> bytes:
        return b"".join(batch.labels.tobytes() for batch in Pruned(open_labels(tree), 0.5, by, seed))

    assert seen(1) == seen(1)
    assert len({seen(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_kept_records_keep_their_label_image_and_partner(by: str, tree: Path) -> None:
    whole = {batch.place: batch for batch in open_labels(tree)}
    for batch in Pruned(open_labels(tree), 0.4, by, 2):
        of = whole[batch.place]
        rows = [next(i for i, label in enumerate(of.labels) if np.array_equal(label, one)) for one in batch.labels]
        assert rows == sorted(set(rows))
        for name in COLUMNS:
            assert np.array_equal(getattr(batch, name), getattr(of, name)[rows])
        kept, all_ = batch.context(), of.context()
        for name in ("partner", "partner_crop", "partner_flip", "mix", "box"):
            assert np.array_equal(getattr(kept, name), getattr(all_, name)[rows]), name


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_a_pruned_file_has_the_labels_and_the_context_of_the_kept_records(by: str, tree: Path, tmp_path: Path) -> None:
    kept = Pruned(open_labels(tree), 0.4, by, 2)
    codec, _ = vqlabel.fit(kept, vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(kept, tmp_path / "a.vql", codec=codec)
    file, labels = VqlFile(tmp_path / "a.vql"), vqlabel.open(tmp_path / "a.vql")
    assert file.source["details"] == {"pruned": {"keep": 0.4, "by": by, "seed": 2, "batches": 24}}
    found = vqlabel.stats(tmp_path / "a.vql")
    before = found["pruned"]["bits_per_label_before"]["all_in"]
    assert before == pytest.approx(0.4 * found["bits_per_label"]["all_in"])
    start = 0
    for batch in kept:
        record = np.arange(start, start := start + len(batch))
        assert np.array_equal(labels[record].numpy(), batch.labels.astype(np.float32))
        found, expected = file.columns.context(record), batch.context()
        for name in ("image", "partner", "crop", "flip", "partner_crop", "partner_flip", "mix", "box"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        assert np.array_equal(labels.batch(*batch.place).labels.numpy(), batch.labels.astype(np.float32))
    assert start == file.records


def test_the_prior_uses_partners_whose_records_were_dropped(tree: Path, tmp_path: Path) -> None:
    kept = Pruned(open_labels(tree), 0.5, "view", 2)
    codec, _ = vqlabel.fit(kept, vqlabel.FitConfig(slots=2, codebook_size=4, latent=6, prior=True, temperature=(1.0,)))
    assert codec.config.prior is not None and "partner_crop" in codec.config.prior.fields
    vqlabel.pack(kept, tmp_path / "a.vql", codec=codec)
    raw = np.concatenate([batch.labels for batch in kept]).astype(np.float32)
    decoded = vqlabel.open(tmp_path / "a.vql")[:].numpy()
    spread, error = ((x - x.mean(1, keepdims=True)) for x in (raw, decoded - raw))
    assert np.square(error).mean() < 0.5 * np.square(spread).mean()


@pytest.mark.parametrize(
    ("keep", "by", "message"),
    [
        (0.0, "epoch", "keep is 0.0; it must be above 0"),
        (1.5, "epoch", "keep is 1.5; it must be above 0 and at most 1"),
        (0.01, "epoch", "keep is 0.01; it keeps none of 6 epochs; keep more, or prune by a smaller unit"),
        (0.5, "image", "by is 'image'; it must be one of epoch, batch, view"),
    ],
)
def test_invalid_arguments_are_refused(keep: float, by: str, message: str, tree: Path) -> None:
    with pytest.raises(UsageError, match=message):
        Pruned(open_labels(tree), keep, by)


def test_pruning_by_view_needs_image_indices(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(9, 3)).astype(np.float16))
    with pytest.raises(
        UsageError, match=r"the dump does not record the image of each label, so it cannot be pruned by view: use --by batch"
    ):
        Pruned(open_labels(tmp_path / "a.npy"), 0.5, "view")


def test_pruning_by_view_does_not_lose_the_augmentation_of_partners(
    batches: list[LabelBatch], write_dump: Callable[..., Path], tmp_path: Path
) -> None:
    patched = [replace(batch, patches=np.tile([1, 0], (len(batch), 2, 1))) for batch in batches]
    kept = Pruned(open_labels(write_dump(tmp_path / "dump", patched, "edc")), 0.5, "view")
    with pytest.raises(UsageError, match=r"dump: pruning by view would lose the patches of dropped views .*: use --by batch"):
        kept.read(0)


@pytest.mark.parametrize("by", ["epoch", "batch", "view"])
def test_rows_of_an_array_keep_their_images(by: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).normal(size=(2, 9000, 2)).astype(np.float16)  # three batches per epoch
    np.save(tmp_path / "a.npy", labels)
    kept = Pruned(open_labels(tmp_path / "a.npy"), 0.5, by, 3)
    vqlabel.pack(kept, tmp_path / "a.vql", codec=vqlabel.fit(kept, vqlabel.FitConfig(codec="raw"))[0])
    file = vqlabel.open(tmp_path / "a.vql")
    for batch in file.batches():
        assert batch.image is not None
        assert np.array_equal(batch.labels.numpy(), labels[batch.place.epoch, batch.image.numpy()].astype(np.float32))


def test_a_pruned_file_is_compared_with_the_kept_records(tree: Path, tmp_path: Path) -> None:
    kept = Pruned(open_labels(tree), 0.5, "batch", 1)
    vqlabel.pack(kept, tmp_path / "a.vql", codec=vqlabel.fit(kept, vqlabel.FitConfig(codec="raw"))[0])
    found = vqlabel.stats(tmp_path / "a.vql", against=tree)
    assert found["same_dump"] is True and found["distortion"]["mse"] == 0


def test_training_batches_have_the_partners_of_kept_views(tree: Path, tmp_path: Path) -> None:
    kept = Pruned(open_labels(tree), 0.5, "view", 1)
    vqlabel.pack(kept, tmp_path / "a.vql", codec=vqlabel.fit(kept, vqlabel.FitConfig(codec="raw"))[0])
    assert VqlFile(tmp_path / "a.vql").container.requires == ["view_columns"]
    for batch, expected in zip(vqlabel.open(tmp_path / "a.vql").batches(), kept, strict=True):
        assert batch.partner_image.tolist() == expected.partner_image.tolist() and batch.mix_index is None


def test_the_choice_for_a_seed_is_fixed(tree: Path) -> None:
    kept = {seed: sorted({place.epoch for place in Pruned(open_labels(tree), 0.5, "epoch", seed).places}) for seed in (0, 1, 7)}
    assert kept == {0: [2, 3, 4], 1: [1, 2, 4], 7: [0, 4, 5]}
    batches = [[place.batch for place in Pruned(open_labels(tree), 0.25, "batch", seed).places] for seed in (0, 7)]
    assert batches == [[0, 2, 3, 0, 0, 3], [0, 3, 0, 0, 3, 3]]
