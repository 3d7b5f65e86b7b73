"""SRe2L's training loop, from its description: on a dump by its reader's rules, on a `.vql` by the drop-in."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate

import vqlabel
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.errors import UsageError, VqlabelError
from vqlabel.labels import LabelBatch, Place, open_labels
from vqlabel.labels.pruning import Pruned
from vqlabel.training.sre2l import ImageFolder_FKD_MIX, samples_of
from vqlabel.vql.source import VqlSource

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be checked", "ignore:.*any folder passes")

IMAGES, CLASSES, BATCH, EPOCHS, SIZE, T = 10, 3, 4, 3, 16, 20
HEIGHT, WIDTH = 20, 24

Batches = list[LabelBatch]
Pack = Callable[..., Path]


@pytest.fixture(scope="module")
def root(draw_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in three classes."""
    return draw_images(tmp_path_factory.mktemp("train"), IMAGES, HEIGHT, WIDTH, lambda at: f"n{at % CLASSES}")


def shuffled(seed: int = 42) -> Iterator[list[list[int]]]:
    """The image indices of every epoch's batches, as SRe2L's DataLoader shuffles them."""
    sampler = RandomSampler(range(IMAGES), generator=torch.Generator().manual_seed(seed))
    for _ in range(EPOCHS):
        yield list(BatchSampler(sampler, BATCH, drop_last=False))


def draw(orders: Iterable[list[list[int]]], mix: str = "cutmix") -> Batches:
    """A dump with random labels, crops, flips and mixing for these image indices."""
    rng, batches = np.random.default_rng(1), []
    for epoch, order in enumerate(orders):
        for number, image in enumerate(order):
            n = len(image)
            height, width = rng.integers(8, HEIGHT + 1, n), rng.integers(8, WIDTH + 1, n)
            top, left = rng.integers(0, HEIGHT + 1 - height), rng.integers(0, WIDTH + 1 - width)
            batches.append(
                LabelBatch(
                    labels=(5 * rng.normal(size=(n, CLASSES))).astype(np.float16),
                    place=Place(epoch, number),
                    image=np.array(image),
                    crop=(np.stack([top, left, height, width], 1) / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
                    flip=rng.random(n) < 0.5,
                    mix_index=rng.permutation(n),
                    mix_lam=float(rng.random()),
                    mix_box=(2, 5, 9, 15) if mix == "cutmix" else None,
                )
            )
    return batches


@pytest.fixture(scope="module")
def pack(write_dump: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Pack a dump losslessly into a `.vql`."""

    def pack(batches: Any, domain: str = "logits") -> Path:
        folder = tmp_path_factory.mktemp("packed")
        source = batches
        if isinstance(batches, list):
            source = open_labels(write_dump(folder / "dump", batches))
        codec = RawCodec(RawConfig(classes=CLASSES, domain=domain, dtype="F16"))
        vqlabel.pack(source, folder / "labels.vql", codec=codec)
        return folder / "labels.vql"

    return pack


@pytest.fixture(scope="module")
def packed(pack: Pack) -> Path:
    return pack(draw(shuffled()))


def to_view(image: Image.Image, coords: Tensor, flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Crop, resize and flip, with the arguments and results of SRe2L's composed transforms."""
    assert coords.dtype == torch.float32 and flip.dtype == torch.bool and coords.shape == (4,) and flip.shape == ()
    top, left, height, width = (coords * torch.tensor([HEIGHT, WIDTH, HEIGHT, WIDTH])).round().int().tolist()
    view = np.asarray(image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return torch.from_numpy(np.array(view[:, ::-1] if flip else view)).permute(2, 0, 1) / 255, flip, coords


def original(tree: Path, root: Path) -> Iterator[list[Any]]:
    """Epochs of batches by rules of SRe2L's reader: the first image, in a repeated shuffle, finds a batch's file."""
    samples = [(file, int(file.parent.name[1:])) for folder in sorted(root.iterdir()) for file in sorted(folder.iterdir())]
    for epoch, (order, repeated) in enumerate(zip(shuffled(), shuffled(), strict=True)):
        number_of = {images[0]: number for number, images in enumerate(repeated)}
        batches = []
        for images in order:
            coords, flips, *mixed = torch.load(tree / f"epoch_{epoch}" / f"batch_{number_of[images[0]]}.tar", weights_only=True)
            found = []
            for at, coord, flip in zip(images, coords, flips, strict=True):
                file, target = samples[at]
                view, flipped, where = to_view(Image.open(file).convert("RGB"), coord, flip)
                found.append((view, target, flipped, where))
            batches.append([default_collate(found), *mixed])
        yield batches


def dropped_in(dataset: ImageFolder_FKD_MIX, **how: Any) -> Iterator[Iterable[Any]]:
    """Epochs of batches from the drop-in, with the DataLoader of SRe2L's script."""
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(42))
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=False, sampler=sampler, **how)
    for epoch in range(EPOCHS):
        loader.dataset.set_epoch(epoch)
        yield loader


def train(epochs: Iterable[Iterable[Any]], mix: str) -> list[float]:
    """The loss of every step of SRe2L's training loop."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    student(torch.zeros(2, 3, SIZE, SIZE))
    optimizer, losses = torch.optim.SGD(student.parameters(), 0.5, momentum=0.9), []
    for loader in epochs:
        for batch_data in loader:
            images, target, flip_status, coords_status = batch_data[0]
            mix_index, mix_lam, mix_bbox, soft_label = batch_data[1:]
            assert len(images) == len(target) == len(flip_status) == len(coords_status)
            soft_label = soft_label.float()
            if mix == "cutmix":
                row0, col0, row1, col1 = mix_bbox
                images[:, :, row0:row1, col0:col1] = images[mix_index, :, row0:row1, col0:col1]
            else:
                images = mix_lam * images + (1 - mix_lam) * images[mix_index]
            loss = F.kl_div(F.log_softmax(student(images) / T, 1), F.softmax(soft_label / T, 1), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("mix", "how"),
    [
        ("cutmix", {}),
        ("mixup", {}),
        ("cutmix", {"num_workers": 2}),
        ("mixup", {"num_workers": 2, "persistent_workers": True}),
    ],
)
def test_the_drop_in_gives_the_same_loss_at_every_step(
    mix: str, how: dict[str, Any], root: Path, pack: Pack, write_dump: Callable[..., Path], tmp_path: Path
) -> None:
    batches = draw(shuffled(), mix)
    tree = write_dump(tmp_path / "tree", batches, "sre2l")
    dataset = ImageFolder_FKD_MIX(
        fkd_path=pack(batches), mode="fkd_load", args_epoch=EPOCHS, args_bs=BATCH, root=root, transform=to_view
    )
    want, found = train(original(tree, root), mix), train(dropped_in(dataset, **how), mix)
    assert len(want) == 9
    assert len({round(loss, 6) for loss in want}) == 9
    assert found == pytest.approx(want, rel=0, abs=5e-7)


def test_a_batch_has_the_structure_that_the_script_expects(root: Path, packed: Path) -> None:
    dataset = ImageFolder_FKD_MIX(packed, "fkd_load", root=root, transform=to_view)
    want = draw(shuffled())[3]
    dataset.set_epoch(1)
    images, index, lam, box, label = next(iter(DataLoader(dataset, sampler=dataset.sampler, batch_size=BATCH)))
    assert [part.shape for part in images] == [(4, 3, SIZE, SIZE), (4,), (4,), (4, 4)]
    assert [part.dtype for part in images] == [torch.float32, torch.int64, torch.bool, torch.float32]
    assert images[1].tolist() == [dataset.targets[at] for at in want.image]
    np.testing.assert_array_equal(images[3], want.crop)
    assert (index.dtype, index.tolist()) == (torch.int64, want.mix_index.tolist())
    assert (type(lam), lam) == (float, want.mix_lam)
    assert box == list(want.mix_box) and all(type(edge) is int for edge in box)
    assert label.dtype == torch.float16
    np.testing.assert_array_equal(label, want.labels)


def test_loader_and_target_transform_are_applied(root: Path, packed: Path) -> None:
    dataset = ImageFolder_FKD_MIX(
        packed, "fkd_load", root=str(root), loader=lambda path: int(Path(path).stem), target_transform=lambda target: -target
    )
    names, targets, *_ = next(iter(DataLoader(dataset, sampler=dataset.sampler, batch_size=BATCH)))[0]
    image = draw(shuffled())[0].image.tolist()
    assert names.tolist() == [int(Path(dataset.samples[at][0]).stem) for at in image]
    assert targets.tolist() == [-dataset.targets[at] for at in image]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_different_shuffle_is_refused_and_the_stored_order_works_for_every_dump(workers: int, root: Path, pack: Pack) -> None:
    rng = np.random.default_rng(5)
    batches = draw(np.split(rng.permutation(IMAGES), [4, 8]) for _ in range(EPOCHS))
    dataset = ImageFolder_FKD_MIX(pack(batches), "fkd_load", EPOCHS, BATCH, root=root, transform=to_view)
    with pytest.raises(UsageError, match=r"stored epoch 0 has no batch of the images \[\d.*sampler=train_dataset\.sampler"):
        list(next(dropped_in(dataset)))
    loader = DataLoader(dataset, batch_size=BATCH, sampler=dataset.sampler, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (2, 0, 1):
        dataset.set_epoch(epoch)
        assert len(loader) == 3
        for found, want in zip(loader, batches[3 * epoch : 3 * epoch + 3], strict=True):
            np.testing.assert_array_equal(found[4], want.labels)
            np.testing.assert_array_equal(found[0][3], want.crop)
            assert found[0][1].tolist() == [dataset.targets[at] for at in want.image]
    del loader  # the traceback of the refusal keeps this frame; if the garbage collector ends workers, it waits 5 s for each


def test_a_batch_is_identified_by_all_its_images_in_order(root: Path, packed: Path) -> None:
    dataset = ImageFolder_FKD_MIX(packed, "fkd_load", root=root, transform=to_view)
    first = next(shuffled())[0]
    assert len(dataset.__getitems__(first)) == 1
    others = [at for at in range(IMAGES) if at not in first]
    for different in (
        [*first[:3], others[0]],
        [first[0], *others[:3]],
        [*first[:2], first[3], first[2]],
        first[:3],
        [*first, others[0]],
    ):
        with pytest.raises(UsageError, match="has no batch of the images"):
            dataset.__getitems__(different)


def test_sre2ls_patched_fetcher_does_not_change_the_batches(root: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SRe2L's script requires a patched PyTorch, which may still be installed."""
    fetcher, plain = torch.utils.data._utils.fetch._MapDatasetFetcher, torch.utils.data._utils.fetch._MapDatasetFetcher.fetch

    def patched_fetch(self: Any, index: list[int]) -> Any:
        loads = hasattr(self.dataset, "mode") and self.dataset.mode == "fkd_load"
        config = self.dataset.load_batch_config(index[0]) if loads else ()
        return (plain(self, index), *config) if loads else plain(self, index)

    dataset = ImageFolder_FKD_MIX(packed, "fkd_load", root=root, transform=to_view)
    want = list(DataLoader(dataset, batch_size=BATCH, sampler=dataset.sampler))
    monkeypatch.setattr(fetcher, "fetch", patched_fetch)
    for batch, expected in zip(DataLoader(dataset, batch_size=BATCH, sampler=dataset.sampler), want, strict=True):
        assert len(batch) == 5 and torch.equal(batch[4], expected[4]) and torch.equal(batch[0][0], expected[0][0])


def test_settings_that_the_file_does_not_support_raise_value_error(root: Path, packed: Path) -> None:
    def make(mode: str = "fkd_load", epochs: int | None = EPOCHS, size: int | None = BATCH) -> ImageFolder_FKD_MIX:
        return ImageFolder_FKD_MIX(packed, mode, epochs, size, root=root)

    assert make().max_epoch == EPOCHS
    assert make(epochs=1, size=None).epoch == 0
    for wrong, message in (
        ({"epochs": 4}, r"--epochs is 4; .*labels\.vql has 3 epochs: pass at most 3"),
        ({"size": 5}, "--batch-size is 5; the batches of .* have 4 labels: pass 4, and --gradient-accumulation-steps"),
        ({"mode": "fkd_save"}, "mode is 'fkd_save'; it must be fkd_load"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            make(**wrong)
        assert isinstance(refused.value, VqlabelError)
    for epoch in (-1, 3):
        with pytest.raises(ValueError, match=rf"epoch {epoch} is out of range; .* has epochs 0:3"):
            make().set_epoch(epoch)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_a_mix_type_that_differs_from_the_labels_is_refused(mix: str, root: Path, pack: Pack) -> None:
    """The script does not pass --mix-type to its dataset; the drop-in reads it from the caller's `args`."""
    path = pack(draw(shuffled(), mix))

    def main(args: Any) -> ImageFolder_FKD_MIX:
        return ImageFolder_FKD_MIX(fkd_path=args.fkd_path, mode="fkd_load", args_epoch=EPOCHS, args_bs=BATCH, root=root)

    assert main(SimpleNamespace(fkd_path=path, mix_type=mix)).max_epoch == EPOCHS
    for other in {"cutmix", "mixup", None} - {mix}:
        with pytest.raises(
            ValueError, match=rf"--mix-type is {other}; the labels of .* belong to views made with --mix-type {mix}: pass"
        ):
            main(SimpleNamespace(fkd_path=path, mix_type=other))


def test_labels_that_the_script_cannot_use_are_refused(root: Path, packed: Path, pack: Pack, tmp_path: Path) -> None:
    views = pack(Pruned(VqlSource(packed), 0.5, "view"))
    with pytest.raises(
        UsageError, match=r"its records have partner_image, so SRe2L's script cannot render their views; use .*VqlViews"
    ):
        ImageFolder_FKD_MIX(views, "fkd_load", root=root)
    source = VqlSource(packed)
    source.about = replace(source.about, names=[f"n{at}" for at in range(IMAGES)])
    with pytest.raises(UsageError, match="its records have names instead of indices of images, so"):
        ImageFolder_FKD_MIX(pack(source), "fkd_load", root=root)
    probs = np.random.default_rng(0).dirichlet(np.ones(CLASSES), (EPOCHS, IMAGES)).astype(np.float16)
    np.save(tmp_path / "probs.npy", probs)
    np.save(tmp_path / "logits.npy", probs - 1)
    with pytest.raises(UsageError, match="its labels are probs; the script divides labels by a temperature"):
        ImageFolder_FKD_MIX(pack(open_labels(tmp_path / "probs.npy", domain="probs"), "probs"), "fkd_load", root=root)
    with pytest.raises(UsageError, match="its records have no crop, no flip, so"):
        ImageFolder_FKD_MIX(pack(open_labels(tmp_path / "logits.npy")), "fkd_load", root=root)
    source.about = replace(source.about, names=None, order="none")
    unknown = pack(source)
    with pytest.raises(UsageError, match="does not record the image of each label; pack the dump again with --images"):
        ImageFolder_FKD_MIX(unknown, "fkd_load", root=root)


def test_a_wrong_number_of_images_is_refused(packed: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "n0").mkdir()
    (tmp_path / "n0" / "one.png").write_bytes((root / "n0" / "00.png").read_bytes())
    with pytest.raises(UsageError, match=r"has 1 images, but the labels belong to 10: pass the images that were labelled"):
        ImageFolder_FKD_MIX(packed, "fkd_load", root=tmp_path)
    with pytest.raises(UsageError, match="no class folder contains an image"):
        ImageFolder_FKD_MIX(packed, "fkd_load", root=tmp_path / "n0")


def test_images_are_listed_in_imagefolders_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPEG", "b/notes.txt", "a/z.tif", "a/sub/0.png", "a/sub.a/0.png", "a/a.webp", "top.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    classes, samples = samples_of(tmp_path)
    assert classes == ["a", "b"]
    found = [(str(Path(file).relative_to(tmp_path)), target) for file, target in samples]
    assert found == [("a/a.webp", 0), ("a/z.tif", 0), ("a/sub/0.png", 0), ("a/sub.a/0.png", 0), ("b/10.JPEG", 1), ("b/2.png", 1)]


def test_epochs_of_a_pruned_file_are_indexed_from_zero(root: Path, packed: Path, pack: Pack) -> None:
    some = pack(Pruned(VqlSource(packed), 0.34, "epoch", seed=1))
    dataset = ImageFolder_FKD_MIX(some, "fkd_load", 1, BATCH, root=root, transform=to_view)
    kept = dataset.labels.places[0].epoch
    assert kept > 0
    found = torch.cat([batch[4] for batch in DataLoader(dataset, batch_size=BATCH, sampler=dataset.sampler)])
    np.testing.assert_array_equal(found, np.concatenate([b.labels for b in draw(shuffled()) if b.place.epoch == kept]))
