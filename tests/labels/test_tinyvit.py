"""TinyViT's packages -> label batches and back: records byte for byte, each with its image and its seed, by rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vqlabel
from vqlabel import FitConfig
from vqlabel.errors import BadLabels, TargetExists, UsageError
from vqlabel.labels import About, LabelBatch, Place, Support, open_labels, writing
from vqlabel.labels.layouts.tinyvit import TinyVitSource
from vqlabel.labels.sparse import as_dense

CLASSES, K = 20, 4
SEEDS = (0, 1, -1, 2**31 - 1, -(2**31))
Records = NDArray[np.void]


def record_type(k: int = K) -> np.dtype[np.void]:
    return np.dtype([("seed", "<i4"), ("ids", "<i2", (k,)), ("values", "<f2", (k,))])


def draw_probs(n: int, seed: int, classes: int = CLASSES) -> NDArray[np.float64]:
    raised = np.exp(2 * np.random.default_rng(seed).normal(size=(n, classes)))
    return raised / raised.sum(1, keepdims=True)


def draw_records(n: int, seed: int, k: int = K, classes: int = CLASSES) -> Records:
    """As save_logits.py stores them: the k largest, descending; of equal fp16 values the lower class first."""
    halves = draw_probs(n, seed, classes).astype(np.float16)
    records = np.zeros(n, record_type(k))
    records["ids"] = np.argsort(-halves, axis=1, kind="stable")[:, :k]
    records["values"] = np.take_along_axis(halves, records["ids"].astype(np.int64), 1)
    records["seed"] = np.resize(SEEDS, n)
    return records


def write_package(folder: Path, epoch: int, rank: int, keys: list[str], records: Records, k: int = K) -> None:
    place = folder / f"logits_top{k}_epoch{epoch}"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"rank{rank}-keys.txt").write_text("".join(f"{key}\n" for key in keys))
    (place / f"rank{rank}-values.bin").write_bytes(records.tobytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqlabel.labels.layouts.tinyvit.BATCH_RECORDS", 4)


MakeDump = Callable[..., tuple[Path, list[tuple[int, int, list[str], Records]]]]


@pytest.fixture
def dump(tmp_path: Path) -> MakeDump:
    """3 epochs of 2 ranks that share 12 images, epoch 10 among them; `name` gives the key of an image."""

    def make(
        name: Callable[[int], str] = lambda i: f"n{i % 3}/im ä{i}.JPEG",
    ) -> tuple[Path, list[tuple[int, int, list[str], Records]]]:
        packages = []
        for epoch in (0, 2, 10):
            order = np.random.default_rng(epoch).permutation(12).tolist()
            for rank, images in ((0, order[:5]), (11, order[5:])):
                packages.append((epoch, rank, [name(i) for i in images], draw_records(len(images), 100 * epoch + rank)))
        for package in packages:
            write_package(tmp_path / "dump", *package)
        return tmp_path / "dump", packages

    return make


# --- reading


@pytest.mark.usefixtures("small_batches")
def test_packages_are_read_as_tinyvit_wrote_them(dump: MakeDump) -> None:
    folder, packages = dump()
    (folder / "log.txt").write_text("stray")
    (folder / "logits_top4_epoch2" / "notes.txt").write_text("stray")
    source = open_labels(folder)
    attributes = source.layout, source.domain, source.dtype, source.order, source.classes, source.support, source.about.temperature
    assert attributes == ("tinyvit", "probs", "F16", "explicit", CLASSES, Support(k=K, rest="uniform"), 1.0)
    assert source.places == [Place(epoch, batch) for epoch in (0, 2, 10) for batch in range(4)]
    assert source.about.details == {"ranks": [[epoch, rank, first] for epoch in (0, 2, 10) for rank, first in ((0, 0), (11, 2))]}
    first = packages[0][2] + packages[1][2]
    assert source.about.names == first, "in order of first appearance"
    at = 0
    for _, _, keys, records in packages:
        for start in range(0, len(records), 4):
            batch, rows = source.read(at), records[start : start + 4]
            assert batch.image is not None and batch.seed is not None and batch.crop is None and batch.flip is None
            assert [source.about.names[i] for i in batch.image] == keys[start : start + 4] and batch.seed.tolist() == rows[
                "seed"
            ].tolist()
            ids, values = rows["ids"].astype(np.int64), rows["values"]
            labels = as_dense(batch.labels)
            assert labels.dtype == np.float16 and (np.take_along_axis(labels, ids, 1) == values).all()
            others = labels.astype(np.float64)
            np.put_along_axis(others, ids, 0, 1)
            np.testing.assert_allclose(others.max(1), (1 - values.sum(1, dtype=np.float64)) / (CLASSES - K), rtol=1e-3)
            np.testing.assert_allclose(labels.sum(1, dtype=np.float64), 1, atol=2e-3)
            at += 1
    assert at == len(source)


def test_keys_that_are_the_numbers_of_all_images_are_image_indices(dump: MakeDump) -> None:
    folder, packages = dump(str)
    source = open_labels(folder)
    assert source.about.names is None
    images = [batch.image for batch in source]
    assert all(i is not None and list(map(str, i)) == keys for i, (_, _, keys, _) in zip(images, packages, strict=True))
    some, _ = dump(lambda i: str(i + 1))  # no key 0, so the keys are names
    assert open_labels(some).about.names is not None


def test_any_batch_can_be_read_first(dump: MakeDump) -> None:
    folder, _ = dump()
    whole = list(open_labels(folder))
    source = open_labels(folder)
    for at in (5, 0, 3, 2, 5):
        batch = source.read(at)
        assert batch.place == whole[at].place and (as_dense(batch.labels) == as_dense(whole[at].labels)).all()
        assert batch.image is not None and (batch.image == whole[at].image).all()


def test_a_batch_of_many_classes_has_few_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, 0, 0, [str(i) for i in range(5000)], draw_records(5000, 0))
    assert [len(batch) for batch in open_labels(tmp_path)] == [4096, 904]
    monkeypatch.setattr("vqlabel.labels.layouts.tinyvit.BATCH_BYTES", 2 * CLASSES * 2000)
    assert [len(batch) for batch in open_labels(tmp_path)] == [2000, 2000, 1000]


# --- packing and unpacking


@pytest.mark.parametrize("name", [str, lambda i: f"n{i % 3}/im ä{i}.JPEG"], ids=["numbers", "names"])
@pytest.mark.usefixtures("small_batches")
def test_a_packed_dump_is_unpacked_byte_for_byte(name: Callable[[int], str], dump: MakeDump, tmp_path: Path) -> None:
    folder, _ = dump(name)
    source = open_labels(folder)
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "two", layout="tinyvit:2")
    found = np.frombuffer((tmp_path / "two/logits_top2_epoch0/rank0-values.bin").read_bytes(), record_type(2))
    theirs = np.frombuffer((folder / "logits_top4_epoch0/rank0-values.bin").read_bytes(), record_type())
    assert (found["ids"] == theirs["ids"][:, :2]).all() and (found["values"] == theirs["values"][:, :2]).all()


def test_equal_probabilities_keep_their_classes(tmp_path: Path) -> None:
    """fp32 softmax orders some values that are equal, or 0, in fp16."""
    records = np.zeros(2, record_type())
    records["ids"], records["values"] = [[7, 3, 9, 1], [5, 4, 3, 2]], [[0.5, 0.125, 0.125, 0.0625], [1, 2e-7, 0, 0]]
    write_package(tmp_path / "dump", 0, 0, ["0", "1"], records)
    source = TinyVitSource(tmp_path / "dump", None, classes=CLASSES)
    write(tmp_path / "out", list(source), about=source.about)
    found = np.frombuffer((tmp_path / "out/logits_top4_epoch0/rank0-values.bin").read_bytes(), record_type())
    assert (found["values"] == records["values"]).all()
    assert found["ids"].tolist() == [[7, 3, 9, 1], [5, 4, 2, 3]]


def test_a_probability_that_fp16_rounds_to_0_keeps_its_class(tmp_path: Path) -> None:
    """A confident teacher: the rest that TinyViT gives to the classes that are not stored exceeds these values."""
    records = np.zeros(2, record_type(4))
    records["ids"], records["values"] = [[1, 0, 5, 6], [3, 2, 1, 0]], [[0.9, 0.0996, 0, 0], [1, 0, 0, 0]]
    records["ids"][1] = [3, 0, 4, 6]
    write_package(tmp_path / "dump", 0, 0, ["0", "1"], records, 4)
    source = open_labels(tmp_path / "dump", classes=CLASSES)
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    vqlabel.unpack(tmp_path / "a.vql", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "dump")


def write(out: Path, batches: list[LabelBatch], target: str = "tinyvit", about: About | None = None, **others: Any) -> None:
    defaults = {"layout": "x", "classes": CLASSES, "domain": "probs", "dtype": "F32", "order": "explicit"}
    with writing(out, about or About(**{**defaults, **others}), target) as writer:
        for batch in batches:
            writer.add(batch)


def batch_of(image: list[int], epoch: int = 0, number: int = 0, **columns: Any) -> LabelBatch:
    n = len(image)
    defaults = {"labels": draw_probs(n, number).astype(np.float32), "place": Place(epoch, number), "image": np.array(image)}
    return LabelBatch(**{**defaults, "seed": np.resize(SEEDS, n).astype(np.int64), **columns})


@pytest.mark.parametrize("domain", ["probs", "logits"])
def test_labels_of_other_layouts_are_written_as_one_rank(domain: str, tmp_path: Path) -> None:
    probs, batches = draw_probs(5, 0), []
    labels = (probs if domain == "probs" else np.log(probs) - 3).astype(np.float32)
    for epoch, number, rows in ((0, 0, slice(0, 3)), (0, 1, slice(3, 5)), (1, 0, slice(0, 5))):
        image = [4, 1, 3, 0, 2][rows]
        batches.append(batch_of(image, epoch, number, labels=labels[rows]))
    write(tmp_path / "out", batches, domain=domain, details={"ranks": "of another layout"})
    expected = np.zeros(5, record_type(10))
    expected["ids"] = np.argsort(-probs, axis=1)[:, :10]
    expected["values"] = np.take_along_axis(probs, expected["ids"].astype(np.int64), 1)
    found = contents(tmp_path / "out")
    assert set(found) == {f"logits_top10_epoch{e}/rank0-{name}" for e in (0, 1) for name in ("keys.txt", "values.bin")}
    for epoch, seeds in ((0, [0, 1, -1, 0, 1]), (1, SEEDS)):
        expected["seed"] = seeds
        records = np.frombuffer(found[f"logits_top10_epoch{epoch}/rank0-values.bin"], record_type(10))
        assert found[f"logits_top10_epoch{epoch}/rank0-keys.txt"] == b"4\n1\n3\n0\n2\n"
        assert (records["seed"] == expected["seed"]).all() and (records["ids"] == expected["ids"]).all()
        np.testing.assert_allclose(records["values"], expected["values"], rtol=1e-3)


def test_k_defaults_to_that_of_the_dump(tmp_path: Path) -> None:
    write(tmp_path / "three", [batch_of([0])], support=Support(k=3, rest="uniform"))
    write(tmp_path / "seven", [batch_of([0])], "tinyvit:7", support=Support(k=3, rest="uniform"))
    assert [e.name for e in (tmp_path / "three").iterdir()] == ["logits_top3_epoch0"]
    assert [e.name for e in (tmp_path / "seven").iterdir()] == ["logits_top7_epoch0"]


def test_ranks_keep_their_numbers_in_a_pruned_dump(tmp_path: Path) -> None:
    details = {"ranks": [[0, 0, 0], [0, 2, 3], [0, 5, 6]]}
    batches = [batch_of([number], 0, number) for number in (1, 4, 7)]
    write(tmp_path / "out", batches, layout="tinyvit", details=details)
    found = contents(tmp_path / "out/logits_top10_epoch0")
    assert {name: found[name] for name in found if "keys" in name} == {
        "rank0-keys.txt": b"1\n",
        "rank2-keys.txt": b"4\n",
        "rank5-keys.txt": b"7\n",
    }


def test_a_dump_is_overwritten_and_another_folder_is_not(tmp_path: Path) -> None:
    write(tmp_path / "out", [batch_of([0])])
    with writing(
        tmp_path / "out", About(layout="x", classes=CLASSES, domain="probs", dtype="F32", order="rows"), "tinyvit:1", overwrite=True
    ) as w:
        w.add(batch_of([1]))
    assert [e.name for e in (tmp_path / "out").iterdir()] == ["logits_top1_epoch0"]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(TargetExists, match="is a folder that contains more than a dump"):
        write(tmp_path / "out", [batch_of([0])])


# --- refused when writing


@pytest.mark.parametrize(
    ("target", "about", "message"),
    [
        ("tinyvit:0", {}, r"layout is 'tinyvit:0'; it must be tinyvit:k with k in 1\.\.20, the number of classes"),
        ("tinyvit:21", {}, r"layout is 'tinyvit:21'; it must be tinyvit:k with k in 1\.\.20"),
        ("tinyvit:ms-k5", {}, r"layout is 'tinyvit:ms-k5'; it must be tinyvit:k"),
        ("tinyvit", {"classes": 9}, r"layout is 'tinyvit:10'; it must be tinyvit:k with k in 1\.\.9"),
        ("tinyvit", {"classes": 32769}, "classes is 32769; it must be at most 32768: tinyvit stores classes as int16"),
        ("tinyvit", {"order": "none"}, "tinyvit finds labels by the key of their image, but these records .* pass --images"),
        ("tinyvit", {"names": ["a"]}, "image 1 has no name, or one that TinyViT would strip or split; rename it"),
        *(("tinyvit", {"names": ["a", key]}, "image 1 has no name, or one that") for key in ("", " b", "b\n", "b\rc", "b\nc")),
        *(
            (
                "tinyvit",
                {"layout": "tinyvit", "details": {"ranks": ranks}},
                "the details of these labels have the rank .*: damaged or forged",
            )
            for ranks in (7, "x", [7], [[0, 0]], [[0, "/../../x", 0]], [[0, -1, 0]], [[0, 0.5, 0]], [[0, True, 0]])
        ),
    ],
    ids=str,
)
def test_labels_that_the_layout_cannot_store_are_refused(target: str, about: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "out", [batch_of([0, 1])], target, **about)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"seed": None},
            "tinyvit draws the view again from the seed of every label, but these records have no seed; write a layout that stores crops",
        ),
        (
            {"crop": np.zeros((2, 4), np.float32)},
            "tinyvit cannot store crop, .*: its pipeline draws the view from the seed alone",
        ),
        ({"flip": np.zeros(2, bool)}, "tinyvit cannot store flip"),
        ({"mix_lam": 0.5}, "tinyvit cannot store mix_lam"),
        ({"ops": np.zeros((2, 1, 3), np.float32)}, "tinyvit cannot store ops"),
    ],
    ids=str,
)
def test_a_batch_that_the_layout_cannot_store_is_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "out", [batch_of([0, 1], **columns)])
    assert not list(tmp_path.iterdir())


def test_two_records_of_an_image_in_one_package_are_refused(tmp_path: Path) -> None:
    for batches in ([batch_of([1, 1])], [batch_of([0, 1]), batch_of([2, 1], 0, 1)]):
        with pytest.raises(
            UsageError, match="tinyvit stores one label per image and epoch, but image 1 has several in epoch 0; write fkd or"
        ):
            write(tmp_path / "out", batches)
    write(tmp_path / "out", [batch_of([0, 1]), batch_of([2, 1], 1)])
    two = {
        "layout": "tinyvit",
        "details": {"ranks": [[0, 0, 0], [0, 1, 1]]},
    }  # an image of both ranks: distributed samplers pad epochs so
    write(tmp_path / "two", [batch_of([0, 1]), batch_of([2, 1], 0, 1)], **two)


# --- refused when reading


def test_other_folders_and_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"contains no logits_topK_epochE/rankR-values\.bin"):
        open_labels(tmp_path, layout="tinyvit")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(BadLabels, match="not a folder; TinyViT's dump is a folder"):
        open_labels(tmp_path / "a.csv", layout="tinyvit")
    write_package(tmp_path / "dump", 0, 0, ["a"], draw_records(1, 0))
    with pytest.raises(UsageError, match="domain is 'logits'; it must be probs, which is what tinyvit stores"):
        open_labels(tmp_path / "dump", domain="logits")
    write_package(tmp_path / "dump", 1, 0, ["a"], draw_records(1, 0, 2), 2)
    with pytest.raises(BadLabels, match=r"with k of \[2, 4\]; a dump has one k: move the others"):
        open_labels(tmp_path / "dump")


def test_keys_and_values_that_do_not_match_are_refused(tmp_path: Path) -> None:
    write_package(tmp_path, 0, 3, ["a", "b", "c"], draw_records(3, 0))
    keys, values = (tmp_path / "logits_top4_epoch0" / f"rank3-{name}" for name in ("keys.txt", "values.bin"))
    whole = values.read_bytes()
    for size in range(len(whole)):
        values.write_bytes(whole[:size])
        with pytest.raises(
            BadLabels,
            match=rf"rank3-values\.bin: {size} bytes; it must have 20 per record|keys\.txt: 3 keys, but .* has [12] records",
        ):
            open_labels(tmp_path)
    values.write_bytes(whole)
    for text, message in (
        (b"a\nb\n", r"rank3-keys\.txt: 2 keys, but rank3-values\.bin has 3 records; one of them is truncated"),
        (b"a\nb\nc\n\n", "4 keys, but rank3-values.bin has 3 records"),
        (b"", "1 keys, but rank3-values.bin has 3 records"),
        (b"a\nb\na\n", "key 'a' occurs twice; TinyViT finds labels by their key: remove one of the records"),
        (b"a\nb\n a\n", "key 'a' occurs twice"),
        (b"a\nb\n\xff\n", "keys cannot be read .*; each must be one line of UTF-8"),
    ):
        keys.write_bytes(text)
        with pytest.raises(BadLabels, match=message):
            open_labels(tmp_path)
    keys.write_bytes(b"a\r\nb\r\nc")  # Windows line ends, without the last one
    assert open_labels(tmp_path).about.names == ["a", "b", "c"]
    keys.unlink()
    with pytest.raises(BadLabels, match=r"rank3-keys\.txt: keys cannot be read \(\[Errno 2\]"):
        open_labels(tmp_path)
    keys.write_bytes(b"a\nb\nc\n")
    values.unlink()
    with pytest.raises(BadLabels, match=r"rank3-values\.bin: 0 bytes"):
        open_labels(tmp_path)


def test_a_package_that_is_truncated_while_it_is_read_is_refused(tmp_path: Path) -> None:
    write_package(tmp_path, 0, 0, ["a", "b"], draw_records(2, 0))
    source, file = open_labels(tmp_path), tmp_path / "logits_top4_epoch0/rank0-values.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadLabels, match=r"rank0-values\.bin: 1 of 2 records from 0; it was truncated since it was opened"):
        source.read(0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ids", [0, 1, 2, -1], "row 2: class -1 with probability .*; classes must be integers in 0"),
        ("ids", [0, 1, 2, 2], "row 2: contains a class twice; the top k classes must be k different ones"),
        ("values", [0.5, 0.2, 0.1, np.nan], "row 2: class .* with probability nan"),
        ("values", [0.5, 0.2, 0.1, -0.1], "row 2: class .* with probability -0.09998"),
        ("values", [0.5, 0.5, 0.5, 0.5], "row 2: its probabilities sum to 2, more than 1"),
        ("values", [0.5, 0.01, 0, 0], "row 2: its 4 probabilities leave 0.49 for 16 other classes, none of which can have more than 0;"),
    ],
)  # fmt: skip
def test_a_malformed_record_is_refused(field: str, value: list[float], message: str, tmp_path: Path) -> None:
    records = draw_records(40, 0)
    records[field][2] = value
    write_package(tmp_path, 0, 0, [str(i) for i in range(40)], records)
    with pytest.raises(BadLabels, match=rf"rank0-values\.bin, {message}"):
        list(open_labels(tmp_path))


@pytest.mark.usefixtures("small_batches")
def test_the_message_for_a_later_batch_has_its_first_record(tmp_path: Path) -> None:
    records = draw_records(40, 0)
    records["values"][38] = 1
    write_package(tmp_path, 0, 0, [str(i) for i in range(40)], records)
    with pytest.raises(BadLabels, match=r"rank0-values\.bin, records from 36, row 2: its probabilities sum to 4"):
        list(open_labels(tmp_path))


def test_a_class_above_the_passed_number_of_classes_is_refused(tmp_path: Path) -> None:
    write_package(tmp_path, 0, 0, ["a"], draw_records(1, 0))
    with pytest.raises(BadLabels, match=r"contains class \d+, but the dump has 4 classes; pass --classes"):
        TinyVitSource(tmp_path, None, classes=4).read(0)
