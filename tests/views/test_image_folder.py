"""Folders of images: in ImageFolder's order, and refused if unreadable."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqlabel.errors import MissingExtra, UsageError
from vqlabel.labels.images import list_images
from vqlabel.views import ImageFolder

NAMES = ("b/2.png", "b/10.JPG", "a-b/x.webp", "a/deep/y.bmp", "a/z.jpeg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5 + number, 3), (50 * number, 0, 0)).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_images_come_in_imagefolders_order(folder: Path) -> None:
    pictures = ImageFolder(folder)
    assert [file.relative_to(folder).as_posix() for file in pictures.files] == [
        "a/z.jpeg", "a/deep/y.bmp", "a-b/x.webp", "b/10.JPG", "b/2.png",
    ]  # fmt: skip
    assert (pictures.classes, pictures.targets.tolist()) == (["a", "a-b", "b", "deep"], [0, 3, 1, 2, 2])
    assert len(pictures) == 5 and [image.width for image in pictures] == [9, 8, 7, 6, 5]
    assert pictures.sizes().tolist() == [[3, 9], [3, 8], [3, 7], [3, 6], [3, 5]]
    classes = sorted(entry.name for entry in folder.iterdir())
    walked = [sorted(os.walk(folder / name, followlinks=True)) for name in classes]  # as torchvision's make_dataset does
    theirs = [Path(root, name) for roots in walked for root, _, names in roots for name in sorted(names)]
    assert pictures.files == [file for file in theirs if file.suffix != ".txt"]


def test_an_image_beside_the_folders_of_images_is_ignored(folder: Path) -> None:
    before = ImageFolder(folder).files
    Image.new("RGB", (3, 3)).save(folder / "0.png")
    assert ImageFolder(folder).files == before
    assert [image.path for image in list_images(folder / "b")] == [folder / "b" / "10.JPG", folder / "b" / "2.png"]


def test_linked_folders_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    linked = tmp_path_factory.mktemp("linked")
    (linked / "c").symlink_to(folder / "b", target_is_directory=True)
    assert [file.relative_to(linked).as_posix() for file in ImageFolder(linked).files] == ["c/10.JPG", "c/2.png"]


def test_images_are_rgb_and_their_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("L", (6, 3), 77).save(tmp_path / "grey.jpg", exif=exif)
    (image,) = ImageFolder(tmp_path)
    assert (image.mode, image.size, ImageFolder(tmp_path).sizes().tolist()) == ("RGB", (6, 3), [[3, 6]])
    assert abs(np.asarray(image).astype(int) - 77).max() <= 2


@pytest.mark.parametrize("cache", [False, True])
def test_a_cache_keeps_decoded_images(cache: bool, folder: Path) -> None:
    pictures = ImageFolder(folder, cache=cache)
    first = pictures[4]
    pictures.files[4].unlink()
    if cache:
        assert pictures[4] is first
    else:
        with pytest.raises(UsageError, match=r"2\.png: not a readable image"):
            _ = pictures[4]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"not a folder with images \(\.jpg, \.jpeg, \.png, "):
            ImageFolder(folder)


@pytest.mark.parametrize("broken", ["nothing", "no image", "half", "part of another kind"])
def test_an_unreadable_image_is_refused(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    Image.effect_noise((300, 300), 50).save(file)
    good = file.read_bytes()
    last = good.rfind(b"IDAT")
    file.write_bytes(
        {
            "nothing": b"", "no image": b"\x89PNG, not really", "half": good[: len(good) // 2],
            "part of another kind": good[:last] + bytes(4) + good[last + 4 :],
        }[broken]
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"broken\.png: not a readable image"):
        _ = ImageFolder(tmp_path)[0]


def test_without_pillow_the_error_names_the_extra_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    pictures = ImageFolder(folder)
    for look in (pictures.sizes, lambda: pictures[0]):
        with pytest.raises(MissingExtra, match=r"pip install 'vqlabel\[student\]'"):
            look()
