"""Labels are used only with their own images: files and codecs record the images of their labels, and refuse others."""

import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import vqlabel
from vqlabel.cli import app
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.at_config import at_config
from vqlabel.errors import UsageError
from vqlabel.labels import LabelBatch, Place, open_labels
from vqlabel.training.sre2l import ImageFolder_FKD_MIX
from vqlabel.training.views import VqlViews
from vqlabel.views import ImageFolder, Recipe
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.relabel import relabel
from vqlabel.workflows.teacher_source import TeacherSource
from vqlabel.workflows.teachers import Teacher

IMAGES, CLASSES, EPOCHS, BATCH, SIZE = 20, 4, 2, 8, 16

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in each of four classes; image i is a uniform grey of 20 x (20 + i) pixels."""
    root = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        file = root / f"n{index // 5}" / f"{index % 5}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + index, 20), (10 * index,) * 3).save(file)
    return root


def stray(root: Path) -> None:
    Image.new("RGB", (9, 9)).save(root / "n0" / ".thumb.png")


def of_another_ipc(root: Path) -> None:
    for number in range(4):
        Image.new("RGB", (9, 9)).save(root / f"n{number}" / "9.png")


def one_less(root: Path) -> None:
    (root / "n2" / "3.png").unlink()


def renamed_class(root: Path) -> None:
    (root / "n0").rename(root / "z0")


def renamed_file(root: Path) -> None:
    (root / "n1" / "0.png").rename(root / "n1" / "7.png")


def flattened(root: Path) -> None:
    """Remove class folders: a common case in which images are labelled in one order and trained on in another."""
    for index, file in enumerate(sorted(root.rglob("*.png"))):
        shutil.move(file, root / f"{index % 7}_{index}.png")
    for number in range(4):
        (root / f"n{number}").rmdir()


OTHER_COUNTS: list[Change] = [stray, of_another_ipc, one_less]
OTHER_NAMES: list[Change] = [renamed_class, renamed_file]


def changed(folder: Path, tmp_path: Path, change: Change) -> Path:
    shutil.copytree(folder, tmp_path / "changed")
    change(tmp_path / "changed")
    return tmp_path / "changed"


def batches(seed: int = 0) -> list[LabelBatch]:
    """Labels whose largest class is their image's class, in shuffled batches."""
    rng, labelled_batches = np.random.default_rng(seed), []
    for epoch in range(EPOCHS):
        for number, image in enumerate(np.split(rng.permutation(IMAGES), [8, 16])):
            labels = rng.normal(size=(len(image), CLASSES)).astype(np.float16)
            labels[np.arange(len(image)), image // 5] += 9
            crop = np.tile(np.array([0, 0, 1, 1], np.float32), (len(image), 1))
            flip = np.zeros(len(image), bool)
            labelled_batches.append(LabelBatch(labels=labels, place=Place(epoch, number), image=image, crop=crop, flip=flip))
    return labelled_batches


@pytest.fixture(scope="module")
def dump(write_dump: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dump(tmp_path_factory.mktemp("dump") / "dump", batches())


def pack(dump: Path, out: Path, **how: Any) -> Path:
    source = open_labels(dump, **how)
    codec, _ = vqlabel.fit(source, vqlabel.FitConfig(codec="raw"))
    vqlabel.pack(source, out, codec=codec)
    return out


def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES)), "small", (0.5,), (0.5,))


def source_of(folder: Path, *, view: int = SIZE, mix: str = "cutmix", **how: Any) -> TeacherSource:
    images = ImageFolder(folder)
    recipe = Recipe(seed=3, images=len(images), epochs=EPOCHS, batch=BATCH, view=view, mix=mix)
    return TeacherSource(images, teacher(), recipe, **how)


def open_views(path: Path, images: Any) -> VqlViews:
    """Open views; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return VqlViews(path, images, SIZE)


def open_drop_in(path: Path, images: Path) -> ImageFolder_FKD_MIX:
    """Open SRe2L's drop-in; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ImageFolder_FKD_MIX(path, "fkd_load", root=images)


@pytest.fixture(scope="module")
def labelled(folder: Path, dump: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files made with their images, by `pack` and `relabel`, and one packed without images."""
    root = tmp_path_factory.mktemp("labelled")
    relabel(source_of(folder), root / "relabel.vql")
    return {
        "images": pack(dump, root / "images.vql", images=folder),
        "relabel": root / "relabel.vql",
        "no_images": pack(dump, root / "no_images.vql"),
    }


@pytest.mark.parametrize("made", ["images", "relabel"])
@pytest.mark.parametrize("read", [open_views, open_drop_in])
@pytest.mark.parametrize("change", [*OTHER_COUNTS, *OTHER_NAMES])
def test_a_file_that_records_its_images_refuses_others(
    made: str, read: Callable[..., Any], change: Change, folder: Path, labelled: dict[str, Path], tmp_path: Path
) -> None:
    assert read(labelled[made], folder)
    with pytest.raises(UsageError, match=rf"{made}\.vql: .*changed(:| has) .*, and names first differ at image \d+ \(found '.*'\)"):
        read(labelled[made], changed(folder, tmp_path, change))


def test_images_without_class_folders_differ_from_those_with(folder: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="these images differ from those of the labels, or are in another order"):
        open_views(labelled["relabel"], changed(folder, tmp_path, flattened))


@pytest.mark.parametrize("read", [VqlViews, ImageFolder_FKD_MIX])
def test_a_file_without_image_names_refuses_another_number_and_warns_otherwise(
    read: Callable[..., Any], folder: Path, labelled: dict[str, Path], tmp_path: Path
) -> None:
    path = labelled["no_images"]
    how: Any = {"size": SIZE, "images": folder} if read is VqlViews else {"mode": "fkd_load", "root": folder}
    with pytest.warns(
        UserWarning, match=r"no_images\.vql: .* cannot be checked, because their names are not recorded; files packed with --images"
    ):
        read(path, **how)
    how = {name: tmp_path / "changed" if value is folder else value for name, value in how.items()}
    with pytest.raises(UsageError, match="changed has 21 images, but the labels belong to 20: pass the images that were labelled"):
        changed(folder, tmp_path, stray) and read(path, **how)


def test_the_number_of_images_is_inferred_if_the_file_does_not_record_it(
    folder: Path, labelled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = VqlFile(labelled["no_images"])
    assert file.images is not None and file.images.to_dict() == {"count": IMAGES}
    monkeypatch.delitem(file.container.metadata, "vql.images")
    monkeypatch.delitem(file.__dict__, "images")
    assert file.images is not None and file.images.to_dict() == {"count": IMAGES}


def test_a_dump_without_a_complete_epoch_warns_that_any_folder_passes(
    write_dump: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    path = pack(write_dump(tmp_path / "part", batches()[:2]), tmp_path / "part.vql")
    assert VqlFile(path).images is None
    with pytest.warns(
        UserWarning, match="neither the number nor the names of the labelled images are recorded, so any folder passes"
    ):
        VqlViews(path, folder, SIZE)


def test_images_in_another_file_format_are_accepted(folder: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    def converted(root: Path) -> None:
        for file in root.rglob("*.png"):
            Image.open(file).save(file.with_suffix(".bmp"))
            file.unlink()

    dataset = open_views(labelled["relabel"], changed(folder, tmp_path, converted))
    assert torch.equal(dataset[0].views, open_views(labelled["relabel"], folder)[0].views)


def test_a_digest_of_bytes_distinguishes_images_with_equal_names(folder: Path, dump: Path, tmp_path: Path) -> None:
    def repainted(root: Path) -> None:
        Image.new("RGB", (20, 20), "red").save(root / "n0" / "0.png")

    relabel(source_of(folder, image_digest="bytes"), tmp_path / "relabel.vql")
    pack(dump, tmp_path / "pack.vql", images=folder, image_digest="bytes")
    other = changed(folder, tmp_path, repainted)
    for path in (tmp_path / "relabel.vql", tmp_path / "pack.vql"):
        for read in (open_views, open_drop_in):
            assert read(path, folder)
            with pytest.raises(UsageError, match=r"these files have the names of the images of .*, but other bytes"):
                read(path, other)


def test_number_and_aspect_ratios_of_a_list_of_images_are_checked(folder: Path, labelled: dict[str, Path]) -> None:
    images = list(ImageFolder(folder))
    halves = [image.resize((image.width // 2, image.height // 2)) for image in images]
    for fitting in (images, halves):
        with pytest.warns(UserWarning, match="cannot be checked, because the images given have no names$"):
            VqlViews(labelled["relabel"], fitting, SIZE)
    with (
        pytest.warns(UserWarning, match="cannot be checked"),
        pytest.raises(UsageError, match=r"image 0 has 20 x 39 pixels, the labelled image had 20 x 20"),
    ):
        VqlViews(labelled["relabel"], images[::-1], SIZE)
    with pytest.raises(UsageError, match="the list of images has 19 images, but the labels belong to 20"):
        VqlViews(labelled["relabel"], images[1:], SIZE)


def test_images_with_equal_names_and_other_aspect_ratios_are_refused(
    folder: Path, labelled: dict[str, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    Image.open(folder / "n1" / "0.png").save(other / "n0" / "0.png")
    with pytest.raises(UsageError, match=r"image 0 has 20 x 25 pixels, the labelled image had 20 x 20; pass the images that were"):
        VqlViews(labelled["relabel"], other, SIZE)


def test_unpickling_in_workers_does_not_warn_again(folder: Path, labelled: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="cannot be checked"):
        data = pickle.dumps(VqlViews(labelled["no_images"], folder, SIZE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(data)


def test_pack_refuses_more_images_than_the_epochs_contain(folder: Path, dump: Path, tmp_path: Path) -> None:
    def one_at_the_end(root: Path) -> None:
        Image.new("RGB", (9, 9)).save(root / "n3" / "z.png")

    with pytest.raises(UsageError, match="every epoch shows 20 images, but 21 images were given"):
        pack(dump, tmp_path / "a.vql", images=changed(folder, tmp_path, one_at_the_end))
    assert not (tmp_path / "a.vql").exists()


# --- codecs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dump of labels of the images, and a codec with a prior fitted to it."""
    root = tmp_path_factory.mktemp("fitted")
    relabel(source_of(folder), root / "sample", layout="lpld")
    vqlabel.fit(
        root / "sample",
        vqlabel.FitConfig(bits=4, prior=True, epochs=1, codebook_size=4, image_width=4, hidden=8, weight_bits=4),
        out=root / "c.codec",
    )
    return root / "sample", root / "c.codec"


def codec_of(fitted: tuple[Path, Path]) -> LabelCodec:
    return vqlabel.load_codec(fitted[1])[0]


def test_a_codec_file_records_the_images_and_the_view_of_its_fit(folder: Path, fitted: tuple[Path, Path]) -> None:
    known = codec_of(fitted).fitted_on
    assert known.images == ImageFolder(folder).image_set() and known.view == SIZE and known.first_sha256 is not None
    assert at_config(codec_of(fitted), vqlabel.FitConfig(slots=1)).fitted_on == known


@pytest.mark.parametrize("change", [renamed_class, renamed_file, flattened])
def test_relabel_refuses_a_codec_fitted_to_other_images(
    change: Change, folder: Path, fitted: tuple[Path, Path], tmp_path: Path
) -> None:
    assert "notes" not in relabel(source_of(folder), tmp_path / "a.vql", codec=codec_of(fitted))
    with pytest.raises(
        UsageError,
        match=r"these images differ from those of the labels that the codec was fitted to.*; fit a codec to labels of these",
    ):
        relabel(source_of(changed(folder, tmp_path, change)), tmp_path / "b.vql", codec=codec_of(fitted))
    assert not (tmp_path / "b.vql.journal").exists()


@pytest.mark.parametrize("size", [8, 32])
def test_relabel_refuses_a_codec_fitted_to_another_view_size(
    size: int, folder: Path, fitted: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"views of {size} pixels; the codec's prior was fitted on views of 16: fit a codec"):
        relabel(source_of(folder, view=size), tmp_path / "b.vql", codec=codec_of(fitted))


def test_pack_refuses_a_codec_fitted_to_other_images_or_notes_that_it_cannot_check(
    folder: Path, fitted: tuple[Path, Path], write_dump: Callable[..., Path], tmp_path: Path
) -> None:
    sample, _ = fitted
    notes = vqlabel.pack(sample, tmp_path / "a.vql", codec=codec_of(fitted))["notes"]
    assert [note for note in notes if "image" in note] == [], "it was fitted to this dump"
    relabel(source_of(changed(folder, tmp_path, renamed_class)), tmp_path / "other", layout="lpld")
    with pytest.raises(UsageError, match="these images differ from those of the labels that the codec was fitted to"):
        vqlabel.pack(tmp_path / "other", tmp_path / "b.vql", codec=codec_of(fitted))
    shutil.move(tmp_path / "other", tmp_path / "moved")  # away from its recipe
    found = vqlabel.pack(tmp_path / "moved", tmp_path / "c.vql", codec=codec_of(fitted))
    assert sum("image" in note for note in found["notes"]) == 1 and "moved has 20 images, as many as" in found["notes"][0]
    run = CliRunner().invoke(app, ["pack", str(tmp_path / "moved"), "-o", str(tmp_path / "d.vql"), "--codec", str(fitted[1])])
    assert run.exit_code == 0 and "cannot be checked" in run.stderr


def test_pack_refuses_boxes_outside_the_views_of_the_codecs_fit(folder: Path, fitted: tuple[Path, Path], tmp_path: Path) -> None:
    relabel(source_of(folder, view=32), tmp_path / "large", layout="lpld")
    shutil.move(tmp_path / "large", tmp_path / "moved")
    with pytest.raises(UsageError, match="boxes end at 32 pixels of a view; the codec's prior was fitted on views of 16"):
        vqlabel.pack(tmp_path / "moved", tmp_path / "a.vql", codec=codec_of(fitted))


def test_a_codec_without_a_prior_accepts_any_images(folder: Path, fitted: tuple[Path, Path], tmp_path: Path) -> None:
    codec, _ = vqlabel.fit(fitted[0], vqlabel.FitConfig(bits=4, prior=False, epochs=1, codebook_size=4))
    found = relabel(source_of(changed(folder, tmp_path, renamed_class), view=32), tmp_path / "a.vql", codec=codec)
    assert "notes" not in found
