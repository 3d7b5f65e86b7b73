"""What tells one folder of images from another: number, names and bytes, with the place of the first difference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels.image_set import ImageSet, WholeEpochs, image_names

NAMES = [f"n{at // 5}/{at % 5}" for at in range(20)]
MANY = [f"n{at // 50:02}/{at % 50:02}" for at in range(1000)]


def refusal(recorded: list[str], found: list[str]) -> str:
    with pytest.raises(UsageError) as refused:
        ImageSet.of(recorded).refuse_others("folder", ImageSet.of(found), found)
    return str(refused.value)


def test_the_same_names_are_the_same_images() -> None:
    assert ImageSet.of(NAMES).refuse_others("folder", ImageSet.of(NAMES), NAMES) is None
    assert ImageSet.of(MANY).refuse_others("folder", ImageSet.of(MANY)) is None


@pytest.mark.parametrize("at", [0, 7, 19])
def test_one_name_too_many_is_named(at: int) -> None:
    said = refusal(NAMES, [*NAMES[:at], "stray", *NAMES[at:]])
    assert said.startswith(f"folder has 21 images, the labels are of 20, and names differ first at image {at} ('stray' there)")


def test_one_image_at_the_end_is_named() -> None:
    assert "folder has 21 images, the labels are of 20, and names differ first at image 20 ('z' there)" in refusal(
        NAMES, [*NAMES, "z"]
    )
    assert refusal(NAMES, NAMES[:-1]).startswith("folder has 19 images, the labels are of 20, and names differ first at image 19:")


def test_names_in_another_order_are_refused_at_the_first_that_moved() -> None:
    said = refusal(NAMES, [*NAMES[:12], NAMES[13], NAMES[12], *NAMES[14:]])
    assert "other images, or in another order" in said and "differ first at image 12 ('n2/3' there)" in said
    assert "sha256" in said


def test_of_many_names_the_part_is_named_in_which_they_differ() -> None:
    said = refusal(MANY, [*MANY[:500], "n10/zz", *MANY[501:]])
    assert "differ first at one of images 500 to 514 ('n10/zz', 'n10/01', 'n10/02', ... there)" in said


def test_what_cannot_be_told_is_said() -> None:
    for recorded, found in ((ImageSet(count=20), ImageSet.of(NAMES)), (ImageSet.of(NAMES), ImageSet(count=20))):
        said = recorded.refuse_others("folder", found)
        assert said is not None and "folder has 20 images" in said and "cannot be told" in said
    with pytest.raises(UsageError, match="folder has 21 images, the labels are of 20: name the images that were labelled"):
        ImageSet(count=20).refuse_others("folder", ImageSet(count=21))


def test_bytes_tell_files_of_the_same_names_apart(tmp_path: Path) -> None:
    files = [tmp_path / f"{at}.png" for at in range(3)]
    for at, file in enumerate(files):
        file.write_bytes(bytes([at]))
    names = image_names(files, tmp_path)
    assert names == ["0", "1", "2"]
    known = ImageSet.of(names, files)
    assert known.refuse_others("folder", ImageSet.of(names), names, files) is None
    files[1].write_bytes(b"x")
    with pytest.raises(UsageError, match=r"folder has files of the same names .* with other bytes"):
        known.refuse_others("folder", ImageSet.of(names), names, files)
    assert ImageSet.of(names).refuse_others("folder", ImageSet.of(names), names, files) is None


def test_it_survives_a_file_and_forged_ones_are_refused() -> None:
    known = ImageSet.of(NAMES)
    assert ImageSet.from_dict({**known.to_dict(), "of a later version": 1}, "a.vql") == known
    assert known.to_dict().keys() == {"count", "names_sha256", "marks"}
    bad: list[Any] = [None, [], {}, {"count": True}, {"count": 0}, {"count": 1 << 25}, {"count": 20, "names_sha256": "x"}]
    bad += [{**known.to_dict(), "count": 19}, {**known.to_dict(), "marks": None}, {"count": 20, "bytes_sha256": 7}]
    for values in bad:
        with pytest.raises(BadContainer, match=r"a\.vql: .*; damaged or forged"):
            ImageSet.from_dict(values, "a.vql")


def test_whole_epochs_imply_how_many_images_there_are() -> None:
    def implied(*epochs: list[int]) -> int | None:
        whole = WholeEpochs()
        for epoch, images in enumerate(epochs):
            for part in np.array_split(np.array(images, np.int64), 2):
                whole.add(epoch, part)
        return whole.images()

    assert implied([2, 0, 1], [1, 2, 0]) == 3
    assert implied([2, 0, 1], [1, 2]) == 3
    assert implied([2, 0], [1, 2]) is None, "no epoch is whole"
    assert implied([0, 1], [2, 0]) is None, "an epoch that was cut short may look whole"
    assert implied([0, 0, 1]) is None
    assert WholeEpochs().images() is None
