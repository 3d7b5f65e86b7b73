"""Image sets: folders that differ in number, names or bytes are refused, with the position of the first difference."""

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
        ImageSet.of(recorded).require_same("folder", ImageSet.of(found), found)
    return str(refused.value)


def test_the_same_names_are_the_same_images() -> None:
    assert ImageSet.of(NAMES).require_same("folder", ImageSet.of(NAMES), NAMES) is None
    assert ImageSet.of(MANY).require_same("folder", ImageSet.of(MANY)) is None


@pytest.mark.parametrize("at", [0, 7, 19])
def test_an_additional_image_is_located(at: int) -> None:
    message = refusal(NAMES, [*NAMES[:at], "stray", *NAMES[at:]])
    assert message.startswith(
        f"folder has 21 images, but the labels belong to 20, and names first differ at image {at} (found 'stray')"
    )


def test_a_difference_at_the_end_is_located() -> None:
    assert "folder has 21 images, but the labels belong to 20, and names first differ at image 20 (found 'z')" in refusal(
        NAMES, [*NAMES, "z"]
    )
    assert refusal(NAMES, NAMES[:-1]).startswith(
        "folder has 19 images, but the labels belong to 20, and names first differ at image 19:"
    )


def test_names_in_another_order_are_refused_at_the_first_one_that_moved() -> None:
    message = refusal(NAMES, [*NAMES[:12], NAMES[13], NAMES[12], *NAMES[14:]])
    assert (
        "differ from those of the labels, or are in another order" in message
        and "first differ at image 12 (found 'n2/3')" in message
    )
    assert "sha256" in message


def test_a_difference_among_many_names_is_located_to_one_chunk() -> None:
    message = refusal(MANY, [*MANY[:500], "n10/zz", *MANY[501:]])
    assert "first differ at one of images 500 to 514 (found 'n10/zz', 'n10/01', 'n10/02', ...)" in message


def test_sets_without_names_are_compared_by_number_and_the_note_has_the_reason() -> None:
    for recorded, found in ((ImageSet(count=20), ImageSet.of(NAMES)), (ImageSet.of(NAMES), ImageSet(count=20))):
        message = recorded.require_same("folder", found)
        assert message is not None and "folder has 20 images" in message and "cannot be checked" in message
    with pytest.raises(UsageError, match="folder has 21 images, but the labels belong to 20: pass the images that were labelled"):
        ImageSet(count=20).require_same("folder", ImageSet(count=21))


def test_digests_of_bytes_distinguish_files_of_the_same_names(tmp_path: Path) -> None:
    files = [tmp_path / f"{at}.png" for at in range(3)]
    for at, file in enumerate(files):
        file.write_bytes(bytes([at]))
    names = image_names(files, tmp_path)
    assert names == ["0", "1", "2"]
    known = ImageSet.of(names, files)
    assert known.require_same("folder", ImageSet.of(names), names, files) is None
    files[1].write_bytes(b"x")
    with pytest.raises(UsageError, match=r"folder: these files have the names of the images of the labels, but other bytes"):
        known.require_same("folder", ImageSet.of(names), names, files)
    assert ImageSet.of(names).require_same("folder", ImageSet.of(names), names, files) is None


def test_json_round_trip_and_forged_objects_are_refused() -> None:
    known = ImageSet.of(NAMES)
    assert ImageSet.from_dict({**known.to_dict(), "of a later version": 1}, "a.vql") == known
    assert known.to_dict().keys() == {"count", "names_sha256", "marks"}
    bad: list[Any] = [None, [], {}, {"count": True}, {"count": 0}, {"count": 1 << 25}, {"count": 20, "names_sha256": "x"}]
    bad += [{**known.to_dict(), "count": 19}, {**known.to_dict(), "marks": None}, {"count": 20, "bytes_sha256": 7}]
    for values in bad:
        with pytest.raises(BadContainer, match=r"a\.vql: .*; damaged or forged"):
            ImageSet.from_dict(values, "a.vql")


def test_complete_epochs_imply_the_number_of_images() -> None:
    def implied(*epochs: list[int]) -> int | None:
        whole = WholeEpochs()
        for epoch, images in enumerate(epochs):
            for part in np.array_split(np.array(images, np.int64), 2):
                whole.add(epoch, part)
        return whole.images()

    assert implied([2, 0, 1], [1, 2, 0]) == 3
    assert implied([2, 0, 1], [1, 2]) == 3
    assert implied([2, 0], [1, 2]) is None, "no epoch is complete"
    assert implied([0, 1], [2, 0]) is None, "an epoch that was cut short may look complete"
    assert implied([0, 0, 1]) is None
    assert WholeEpochs().images() is None
