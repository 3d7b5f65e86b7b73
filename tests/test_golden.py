"""Files of every published layout are read as they were on the day that they were made (tests/golden/make.py, never run by a test)."""

import re
from pathlib import Path

import numpy as np
import pytest

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.container import layout
from vqlabel.vql import VqlFile

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
GOLDEN = Path(__file__).parent / "golden"
CODED = {
    "raw": "fixed",
    "smoothed": "zstd",
    "topk": "fixed",
    "vqae": "zstd",
    "grouped": "fixed",
    "prior": "fixed",
    "alone": "fixed",
}
CROPS = {"smoothed": "float32"}


@pytest.fixture(params=CODED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_its_bytes_are_sound_and_it_covers_what_it_should(name: str) -> None:
    vqlabel.verify(GOLDEN / f"{name}.vql")
    file = VqlFile(GOLDEN / f"{name}.vql")
    assert file.container.metadata["vql.version"] == "1.0"
    assert file.container.streams["codes"].coding == CODED[name]
    assert file.container.json_object("vql.columns")["crop"] == CROPS.get(name, "integers")


def test_its_labels_are_those_of_the_day(name: str) -> None:
    labels, want = vqlabel.open(GOLDEN / f"{name}.vql")[:].numpy(), np.load(GOLDEN / f"{name}.labels.npy")
    if VqlFile(GOLDEN / f"{name}.vql").codec["kind"] == "vqae":  # matrix products differ between machines
        np.testing.assert_allclose(labels, want, atol=1e-4)
    else:
        np.testing.assert_array_equal(labels, want)


def test_its_records_stand_where_they_stood(name: str) -> None:
    want, file, found = np.load(GOLDEN / f"{name}.records.npy"), VqlFile(GOLDEN / f"{name}.vql"), 0
    for at, place in enumerate(file.columns.places):
        batch = file.columns.batch(at, np.empty((0, 0), np.float32))
        rows = want[file.columns.starts[at] : file.columns.starts[at + 1]]
        assert (rows["epoch"] == place.epoch).all() and (rows["batch"] == place.batch).all()
        for column in ("image", "crop", "flip", "mix_index", "mix_lam", "mix_box"):
            value = getattr(batch, column)
            if file.columns.has(column):
                np.testing.assert_array_equal(np.broadcast_to(value, rows[column].shape), rows[column], err_msg=column)
            else:
                assert value is None
        found += len(rows)
    assert found == len(want) == file.records


def test_the_bytes_in_the_docs_are_those_of_their_command(tmp_path: Path) -> None:
    page = FORMAT.read_text()
    array, slots = re.search(r"np\.array\((\[\[.*\]\])", page), re.search(r"--codec topk --slots (\d)", page)
    assert array and slots
    np.save(tmp_path / "tiny.npy", np.array(eval(array[1]), np.float16))
    codec = vqlabel.fit(tmp_path / "tiny.npy", FitConfig(codec="topk", slots=int(slots[1])))[0]
    vqlabel.pack(tmp_path / "tiny.npy", tmp_path / "tiny.vql", codec=codec)
    data, file = (tmp_path / "tiny.vql").read_bytes(), VqlFile(tmp_path / "tiny.vql")
    dumped = re.findall(r"^([0-9a-f]{8}): ((?:[0-9a-f]{2} )+)", page, re.MULTILINE)
    assert len(dumped) == 7
    for at, line in dumped:
        assert data[int(at, 16) :][:16] == bytes.fromhex(line)
    assert file.container.metadata["vql.streams"] in page.replace("\n ", "")
    assert set(file.container.metadata) == set(re.findall(r"^\| `((?:vql\.)?\w+)` \| (?!U8|U64|n |B )", page, re.MULTILINE))


def test_every_limit_in_the_docs_is_one_in_the_code() -> None:
    named = set(re.findall(r"`([A-Z_]{4,})`", FORMAT.read_text()))
    assert named == {name for name in vars(layout) if name.endswith("_MOST")} | {"NAME", "ITEM_BYTES"}
