"""A class map -> the teacher's class of each class folder; a map that does not give every folder a class is refused."""

import json
from pathlib import Path

import pytest

from vqlabel.errors import UsageError
from vqlabel.labels.class_map import read_class_map, teacher_classes

FOLDERS = ["ant", "bee", "cat"]


def write(path: Path, class_map: object) -> Path:
    path.write_text(json.dumps(class_map))
    return path


def test_a_class_map_gives_each_folder_its_class_in_the_order_of_the_folders(tmp_path: Path) -> None:
    file = write(tmp_path / "map.json", {"cat": 2, "ant": 9, "bee": 2, "another folder": 99})
    classes = read_class_map(file, FOLDERS, 10)
    assert classes.dtype == "int64" and classes.tolist() == [9, 2, 2]
    assert teacher_classes("images", FOLDERS, file, 10).tolist() == [9, 2, 2]


def test_without_a_class_map_the_ith_folder_is_class_i() -> None:
    assert teacher_classes("images", FOLDERS, None, 3).tolist() == [0, 1, 2]
    with pytest.raises(
        UsageError, match="images: 3 folders, but the labels have 10 classes; map folders to classes with --class-map"
    ):
        teacher_classes("images", FOLDERS, None, 10)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ([1, 2, 3], "contains list; a class map is an object"),
        ({"ant": 0, "bee": 1}, r"folder 'cat' is missing; a class map gives every folder a class in 0\.\.9"),
        ({"ant": 0, "bee": 10, "cat": 2}, r"folder 'bee' has class 10; it must be an integer in 0\.\.9"),
        ({"ant": -1, "bee": 1, "cat": 2}, "folder 'ant' has class -1"),
        ({"ant": True, "bee": 1, "cat": 2}, "folder 'ant' has class True"),
        ({"ant": 1.0, "bee": 1, "cat": 2}, r"folder 'ant' has class 1\.0"),
    ],
)
def test_a_map_that_does_not_give_every_folder_a_class_is_refused(class_map: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"map\.json: {message}"):
        read_class_map(write(tmp_path / "map.json", class_map), FOLDERS, 10)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_a_file_that_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"map\.json: not readable as JSON"):
        read_class_map(tmp_path / "map.json", FOLDERS, 10)
    with pytest.raises(UsageError, match=r"none\.json: not readable as JSON"):
        read_class_map(tmp_path / "none.json", FOLDERS, 10)
