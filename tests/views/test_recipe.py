"""Recipe and seed -> the same views in every version, as documented, with the right distributions."""

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import ROOT

from vqlabel.container import ContainerReader, ContainerWriter
from vqlabel.errors import UsageError
from vqlabel.labels import Context, LabelBatch, Place
from vqlabel.philox import bits
from vqlabel.views import DrawnColumns, Recipe, recipe
from vqlabel.views.crops import to_pixels
from vqlabel.vql.column_writer import ColumnWriter
from vqlabel.vql.columns import ColumnReader

Draw = Callable[..., dict[str, Any]]
SIZES = np.array([[375, 500], [500, 333], [224, 224], [64, 1000], [1, 1]])
SMALL = Recipe(seed=2024, images=5, epochs=2, batch=3, view=224, mix="cutmix")
NO_LABELS = np.empty((0, 0), np.float32)

IMAGES = ((3, 0, 4), (2, 1), (3, 0, 1), (4, 2))  # of the two batches of both epochs
PIXELS = (
    ((0, 457, 64, 85), (11, 3, 192, 246), (0, 0, 1, 1)),
    ((34, 66, 152, 156), (17, 2, 365, 319)),
    ((0, 457, 64, 85), (94, 240, 213, 257), (21, 4, 413, 328)),
    ((0, 0, 1, 1), (16, 37, 119, 150)),
)
FLIPS = ((True, False, False), (True, True), (True, False, False), (False, False))
PARTNERS = ((1, 2, 0), (0, 1), (2, 1, 0), (0, 1))
CUTMIX = (
    ("0x1.81a1f58d0fac6p-1", (0, 0, 86, 144)),
    ("0x1.f91a1f58d0facp-1", (29, 19, 55, 45)),
    ("0x1.943eb1a1f58d1p-1", (0, 81, 80, 213)),
    ("0x1.7a05397829cbcp-1", (24, 123, 154, 224)),
)
MIXUP = ("0x1.e24388da3edccp-2", "0x1.f851545b6e6f7p-1", "0x1.4cd45cb2e6abcp-1", "0x1.4efbc38fdeb3cp-1")


def pixels_of(batch: LabelBatch | Context, sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    assert batch.image is not None and batch.crop is not None
    return to_pixels(batch.crop, sizes[batch.image])


def tuples(array: NDArray[Any] | None) -> tuple[Any, ...]:
    assert array is not None
    return tuple(tuple(row) if isinstance(row, list) else row for row in array.tolist())


@pytest.mark.parametrize("mix", recipe.MIXES)
def test_the_published_views_are_drawn(mix: str) -> None:
    columns = DrawnColumns(replace(SMALL, mix=mix), SIZES)
    assert columns.places == [Place(0, 0), Place(0, 1), Place(1, 0), Place(1, 1)] and columns.starts.tolist() == [0, 3, 5, 8, 10]
    for at in range(4):
        batch = columns.batch(at, NO_LABELS)
        assert batch.place == columns.places[at]
        assert (tuples(batch.image), tuples(pixels_of(batch, SIZES)), tuples(batch.flip)) == (IMAGES[at], PIXELS[at], FLIPS[at])
        if mix == "none":
            assert (batch.mix_index, batch.mix_lam, batch.mix_box) == (None, None, None)
            continue
        lam, box = CUTMIX[at] if mix == "cutmix" else (MIXUP[at], None)
        assert (tuples(batch.mix_index), batch.mix_lam, batch.mix_box) == (PARTNERS[at], float.fromhex(lam), box)


def test_the_documentation_has_the_same_views() -> None:
    page = (ROOT / "docs" / "augmentation.md").read_text()
    for at, (lam, box) in enumerate(CUTMIX):
        crops = " · ".join(" ".join(map(str, pixels)) for pixels in PIXELS[at])
        words = [" ".join(map(str, row)) for row in (IMAGES[at], [int(f) for f in FLIPS[at]], PARTNERS[at], box)]
        assert (
            f"| {at // 2}, {at % 2} | {words[0]} | {crops} | {words[1]} | {words[2]} | `{lam}` | {words[3]} | `{MIXUP[at]}` |"
            in page
        )


@pytest.mark.parametrize("patches", [2, 3, 16])
def test_patches_are_shuffled_as_defined_and_leave_crops_and_flips(patches: int, draw_by_hand: Draw) -> None:
    plain = Recipe(seed=7, images=5, epochs=2, batch=3, view=97, mix="cutmix")
    columns, unshuffled = DrawnColumns(replace(plain, patches=patches), SIZES), DrawnColumns(plain, SIZES)
    assert columns.has("patches") and not unshuffled.has("patches")
    for at, place in enumerate(columns.places):
        batch, want = columns.batch(at, NO_LABELS), draw_by_hand(columns.recipe, SIZES.tolist(), *place)
        assert batch.patches is not None and batch.patches.tolist() == want["patches"]
        plain_batch = unshuffled.batch(at, NO_LABELS)
        assert plain_batch.patches is None
        for name in ("image", "crop", "flip", "mix_index", "mix_box"):
            assert np.array_equal(getattr(batch, name), getattr(plain_batch, name))


def test_every_order_of_two_strips_is_drawn_equally_often() -> None:
    columns = DrawnColumns(Recipe(seed=1, images=1000, epochs=4, batch=1000, view=8, patches=2), np.array([[8, 8]]))
    orders = np.concatenate([columns.batch(at, NO_LABELS).patches[:, :, 0] for at in range(4)])  # first column, first row
    counts = np.bincount(orders @ [2, 1], minlength=4)
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize("mix", recipe.MIXES)
@pytest.mark.parametrize("seed", [0, 5, (1 << 53) - 1])
def test_views_are_those_of_the_definition(seed: int, mix: str, draw_by_hand: Draw) -> None:
    rng = np.random.default_rng(seed % 1000)
    sizes = np.concatenate([SIZES, rng.integers(1, 60, (18, 2)), [[60_000, 60_000]]])
    one = Recipe(seed=seed, images=24, epochs=3, batch=7, view=97, scale=(0.3, 1), flip=0.3, mix=mix)
    columns = DrawnColumns(one, sizes)
    for at, place in enumerate(columns.places):
        batch, want = columns.batch(at, NO_LABELS), draw_by_hand(one, sizes.tolist(), *place)
        assert tuples(batch.image) == tuple(want["image"]) and tuples(batch.flip) == tuple(want["flip"])
        shares = np.array(want["pixels"]) / sizes[want["image"]][:, [0, 1, 0, 1]]  # as a dump has them: float64, cut to float32
        assert batch.crop is not None and batch.crop.tobytes() == shares.astype(np.float32).tobytes()
        assert mix == "none" or (tuples(batch.mix_index), batch.mix_lam) == (tuple(want["index"]), want["lam"])
        assert batch.mix_box == want.get("box")


def test_no_ratio_is_so_close_to_a_rounding_boundary_that_libraries_could_differ() -> None:
    getcontext().prec = 40
    exact = [(Decimal(4) / 3) ** ((2 * Decimal(i) + 1) / 256 - 1) * 65536 for i in range(256)]
    assert [int(v.to_integral_value()) for v in exact] == (recipe.RATIOS * 65536).tolist()
    assert min(abs(abs(v - v.to_integral_value()) - Decimal("0.5")) for v in exact) > Decimal("1e-4")  # an ulp is 1e-11 there
    assert recipe.RATIOS.min() > 3 / 4 and recipe.RATIOS.max() < 4 / 3 and (np.diff(recipe.RATIOS) > 0).all()


@pytest.mark.parametrize("mix", recipe.MIXES)
def test_drawn_columns_equal_those_read_from_a_file_of_the_same_batches(mix: str, tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(20, 400, (23, 2))
    drawn = DrawnColumns(Recipe(seed=3, images=23, epochs=3, batch=5, view=32, mix=mix), sizes)
    batches = [drawn.batch(at, np.zeros((n, 2))) for at, n in enumerate(np.diff(drawn.starts).tolist())]
    with ContainerWriter(tmp_path / "a.vql") as writer:
        columns = ColumnWriter(tmp_path, "explicit")
        for batch in batches:
            columns.add(batch)
        says = columns.write(writer)
        writer.finish({})
    read = ColumnReader(ContainerReader(tmp_path / "a.vql"), says, 69)
    assert says["crop"] == "integers" and drawn.places == read.places and drawn.starts.tolist() == read.starts.tolist()
    assert (drawn.order, drawn.names) == (read.order, read.names)
    assert all(drawn.has(one.name) == read.has(one.name) for one in fields(LabelBatch) if one.name not in ("labels", "place"))
    record = np.random.default_rng(1).permutation(69)[:40]
    for ours, theirs in (
        (drawn.image(record), read.image(record)), (drawn.crop(record), read.crop(record)),
        (drawn.batch_of(record), read.batch_of(record)), (drawn.context(record), read.context(record)),
        *((batch, read.batch(at, batch.labels)) for at, batch in enumerate(batches)),
    ):  # fmt: skip
        assert_same(ours, theirs)


def assert_same(ours: Any, theirs: Any) -> None:
    """Types, shapes and bytes, of every field."""
    if isinstance(ours, LabelBatch | Context):
        for one in fields(ours):
            assert_same(getattr(ours, one.name), getattr(theirs, one.name))
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    else:
        assert type(ours) is type(theirs) and ours == theirs


def test_cache_and_chunk_size_do_not_change_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    record = np.random.default_rng(0).integers(0, 800, 300)
    one = Recipe(seed=3, images=40, epochs=20, batch=16, view=32, mix="cutmix")
    whole = DrawnColumns(one, SIZES[:1]).context(record)
    drawn: list[int] = []

    def counted(seed: int, purpose: int, *address: Any) -> Any:
        found = bits(seed, purpose, *address)
        drawn.append(found[0].size if purpose == recipe.VIEW else 0)
        return found

    monkeypatch.setattr(recipe, "CHUNK", 7)
    monkeypatch.setattr(recipe, "ORDER_CACHE", 1)
    monkeypatch.setattr(recipe, "bits", counted)
    columns = DrawnColumns(one, SIZES[:1])
    for context in (columns.context(record), columns.context(record)):
        assert_same(context, whole)
    assert columns._order.cache_info().maxsize == 2 and max(drawn) == 7 * (recipe.TRIES + 2)
    for at in range(3):
        assert_same(columns.context(record[at : at + 1]), whole.rows(slice(at, at + 1)))
    assert len(columns.image(record[:0])) == 0


def test_a_batch_larger_than_the_number_of_images_contains_all_of_them() -> None:
    columns = DrawnColumns(Recipe(seed=0, images=5, epochs=2, batch=1 << 24, view=8, mix="mixup"), SIZES)
    batch = columns.batch(1, NO_LABELS)
    assert columns.starts.tolist() == [0, 5, 10] and sorted(tuples(batch.mix_index)) == list(range(5))
    tracemalloc.start()
    assert sorted(tuples(columns.context(np.arange(10)).partner)) == sorted([*range(5)] * 2)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


N, EPOCHS = 500, 40
MANY = Recipe(seed=11, images=N, epochs=EPOCHS, batch=100, view=100, scale=(0.1, 0.5), mix="cutmix")
EVERY = np.arange(N * EPOCHS)


@pytest.fixture(scope="module")
def many() -> DrawnColumns:
    """20,000 views of square images, for which every drawn crop fits."""
    return DrawnColumns(MANY, np.array([[1000, 1000]]))


def is_uniform(values: NDArray[Any]) -> bool:
    """Kolmogorov-Smirnov test at a significance of 1 in 2,000."""
    at = np.arange(len(values) + 1) / len(values)
    ordered = np.sort(values)
    return bool(max((at[1:] - ordered).max(), (ordered - at[:-1]).max()) < 2 / np.sqrt(len(values)))


def test_every_epoch_contains_every_image_once_in_a_new_order(many: DrawnColumns) -> None:
    order = many.image(EVERY).reshape(EPOCHS, N)
    assert (np.sort(order, 1) == np.arange(N)).all()
    apart = np.array([(one == other).sum() for at, one in enumerate(order) for other in order[at + 1 :]])
    fixed, neighbours = (order == np.arange(N)).sum(1), (np.diff(order, axis=1) == 1).sum(1)
    for count in (apart, fixed, neighbours):  # each has mean and variance 1 for random permutations
        assert abs(count.mean() - 1) < 3.5 / np.sqrt(len(count)) and count.max() < 9
    assert abs(np.corrcoef(np.tile(np.arange(N), EPOCHS), order.ravel())[0, 1]) < 3.5 / np.sqrt(N * EPOCHS)


def test_partners_are_a_random_permutation_of_their_batch(many: DrawnColumns) -> None:
    index = np.array([many.batch(at, NO_LABELS).mix_index for at in range(200)])
    assert (np.sort(index, 1) == np.arange(100)).all()
    for count in ((index == np.arange(100)).sum(1), (np.diff(index, axis=1) == 1).sum(1)):
        assert abs(count.mean() - 1) < 3.5 / np.sqrt(len(count))


def test_crops_have_the_areas_ratios_and_positions_of_the_recipe(many: DrawnColumns) -> None:
    top, left, height, width = many.crop(EVERY).astype(np.float64).T
    assert is_uniform((height * width - 0.1) / 0.4)
    assert is_uniform(np.log(width / height) / np.log(16 / 9) + 0.5)
    jitter = np.random.default_rng(0).random((2, len(EVERY))) / 1000  # makes integer pixels continuous
    assert is_uniform((top + jitter[0]) / (1.001 - height)) and is_uniform((left + jitter[1]) / (1.001 - width))
    flips = many.context(EVERY).flip
    assert flips is not None and abs(flips.mean() - 0.5) < 3.5 / np.sqrt(4 * len(EVERY))
    parts = np.stack([top / (1 - height), left / (1 - width), height * width, width / height, flips])
    assert abs(np.corrcoef(parts) - np.eye(5)).max() < 0.03
    by_image = parts.reshape(5, EPOCHS, N)[:, np.arange(EPOCHS)[:, None], np.argsort(many.image(EVERY).reshape(EPOCHS, N), 1)]
    for one in by_image:  # of one image in one epoch and the next, of one image and the next
        for now, then in ((one[:-1], one[1:]), (one[:, :-1], one[:, 1:])):
            assert abs(np.corrcoef(now.ravel(), then.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (375, 500), (65535, 65535)])
def test_crops_lie_inside_their_images(size: tuple[int, int]) -> None:
    columns = DrawnColumns(Recipe(seed=1, images=500, epochs=2, batch=500, view=8), np.array([size]))
    top, left, height, width = to_pixels(columns.crop(np.arange(1000)), np.tile(size, (1000, 1))).astype(np.int64).T
    assert (height >= 1).all() and (width >= 1).all() and (top + height <= size[0]).all() and (left + width <= size[1]).all()


def test_an_image_without_a_fitting_crop_gets_the_largest_central_one() -> None:
    columns = DrawnColumns(Recipe(seed=0, images=2, epochs=1, batch=2, view=8, scale=(1, 1)), np.array([[300, 100], [90, 301]]))
    batch = columns.batch(0, NO_LABELS)
    assert dict(zip(tuples(batch.image), tuples(pixels_of(batch, columns.sizes)), strict=True)) == {
        0: (83, 0, 133, 100),
        1: (0, 90, 90, 120),
    }


def test_lambda_is_the_area_outside_the_box_and_uniform_before_rounding(many: DrawnColumns) -> None:
    batches = [many.batch(at, NO_LABELS) for at in range(200)]
    for batch in batches:
        assert batch.mix_box is not None
        row0, col0, row1, col1 = batch.mix_box
        assert 0 <= row0 <= row1 <= 100 and 0 <= col0 <= col1 <= 100
        assert batch.mix_lam == 1 - (row1 - row0) * (col1 - col0) / 10_000
    mixup = DrawnColumns(replace(MANY, mix="mixup"), SIZES[:1])
    assert is_uniform(np.array([mixup.batch(at, NO_LABELS).mix_lam for at in range(200)]))


def test_a_view_depends_on_seed_epoch_and_image_only(many: DrawnColumns) -> None:
    place = {int(image): record for record, image in enumerate(many.image(np.arange(N)))}
    other = DrawnColumns(replace(MANY, batch=7, epochs=2, mix="none"), many.sizes)  # seed, epoch and image are the same
    record = np.arange(N)
    assert (many.crop(record) == other.crop(record)).all() and len(np.unique(many.crop(EVERY), axis=0)) > 0.99 * len(EVERY)
    assert place[int(other.image(record[:1])[0])] == 0
    seeded = DrawnColumns(replace(MANY, seed=12), many.sizes)
    assert (seeded.crop(record) == many.crop(record)).all(1).mean() < 0.01


@pytest.mark.parametrize("mix", recipe.MIXES)
def test_a_recipe_survives_json(mix: str) -> None:
    one = Recipe(seed=(1 << 53) - 1, images=7, epochs=3, batch=2, view=224, scale=(0.25, 1.0), flip=0.125, mix=mix)
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert one.to_dict()["name"] == "rrc" and one.to_dict()["version"] == 1
    assert "patches" not in one.to_dict(), "files without shuffled patches have the bytes that they had before the field existed"
    shuffled = replace(one, patches=3)
    assert shuffled.to_dict() == {**one.to_dict(), "patches": 3}
    assert Recipe.from_dict(json.loads(json.dumps(shuffled.to_dict()))) == shuffled


GOOD = SMALL.to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"recipe is '\[\]'; it must have the fields name, version, seed, "),
        ({"seed": 0}, "must have the fields"),
        ({**GOOD, "colour": 1}, "must have the fields"),
        ({**GOOD, "version": 2}, "recipe is 'rrc 2'; it must be rrc 1; a newer version of vqlabel may support others"),
        ({**GOOD, "version": True}, "must be rrc 1"),
        ({**GOOD, "name": "autoaugment"}, "recipe is 'autoaugment 1'"),
        ({**GOOD, "seed": 1 << 53}, r"seed is 9007199254740992; it must be an integer in 0\.\.9007199254740991"),
        ({**GOOD, "seed": -1}, "seed is -1"),
        ({**GOOD, "seed": 1.0}, "seed is 1.0"),
        ({**GOOD, "images": 0}, "images is 0"),
        ({**GOOD, "images": True}, "images is True"),
        ({**GOOD, "batch": "3"}, "batch is '3'"),
        ({**GOOD, "view": 1 << 17}, "view is 131072"),
        ({**GOOD, "epochs": 1 << 22}, "epochs is 4194304; it makes 8388608 batches; the limit is 4194304: use larger batches"),
        ({**GOOD, "scale": [0, 1]}, r"scale is \(0, 1\); it must be two numbers in 0\.\.1, the smaller first"),
        ({**GOOD, "scale": [0.9, 0.1]}, "scale is"),
        ({**GOOD, "scale": [0.1, float("nan")]}, "scale is"),
        ({**GOOD, "scale": [0.1, 0.2, 0.3]}, "scale is"),
        ({**GOOD, "scale": ["0.1", 1]}, "scale is"),
        ({**GOOD, "scale": 1.0}, "scale is 1.0"),
        ({**GOOD, "flip": 1.5}, "flip is 1.5"),
        ({**GOOD, "flip": None}, "flip is None"),
        ({**GOOD, "mix": "fmix"}, "mix is 'fmix'; it must be one of none, cutmix, mixup"),
        ({**GOOD, "mix": None}, "mix is None"),
        ({**GOOD, "patches": 1}, "must have the fields"),
        ({**GOOD, "patches": 0}, r"patches is 0; it must be an integer in 1\.\.16"),
        ({**GOOD, "patches": 17}, "patches is 17"),
        ({**GOOD, "patches": 2.0}, "patches is 2.0"),
    ],
)
def test_an_invalid_recipe_is_refused(values: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe.from_dict(values)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[224, 224]] * 4, r"sizes is \[4, 2\]; it must be \[5, 2\], a height and a width for every image, or \[1, 2\]"),
        ([224, 224], r"sizes is \[2\]"),
        ([[224, 224]] * 4 + [[224, 0]], r"size is \[\[224, 0\]\]; it must be a height and a width in 1\.\.65535 pixels"),
        ([[1 << 16, 1]], "size is"),
    ],
)
def test_invalid_sizes_are_refused(sizes: Sequence[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DrawnColumns(SMALL, np.array(sizes))
