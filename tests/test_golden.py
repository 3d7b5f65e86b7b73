"""Golden files of every published layout decode to their recorded labels. tests/golden/make.py wrote them, no test."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from paths import GOLDEN, ROOT

import vqlabel
from vqlabel.config import FitConfig
from vqlabel.container import layout
from vqlabel.vql.file import VqlFile

FORMAT = ROOT / "docs" / "format.md"
CODED = {
    "raw": "fixed",
    "smoothed": "zstd",
    "topk": "fixed",
    "sparse": "fixed",
    "ranked": "ans",
    "shared": "zstd",
    "vqae": "zstd",
    "grouped": "fixed",
    "prior": "fixed",
    "alone": "fixed",
    "head": "fixed",
    "lifted": "fixed",
    "variable": "fixed",
    "outside": "fixed",
    "seeded": "zstd",
    "pruned": "fixed",
}
CROPS = {"smoothed": "float32", "shared": "float32", "outside": "float32", "seeded": None, "pruned": None, "ranked": None}
REQUIRES = {"variable": ["variable_slots"], "outside": ["view_columns"], "seeded": ["seeded_views"], "pruned": ["seeded_views"]}


@pytest.fixture(params=CODED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_golden_file_is_valid_and_has_the_expected_coding(name: str) -> None:
    vqlabel.verify(GOLDEN / f"{name}.vql")
    file = VqlFile(GOLDEN / f"{name}.vql")
    assert file.container.metadata["vql.version"] == "1.0"
    assert file.container.streams["codes"].coding.name == CODED[name]
    assert file.container.json_object("vql.columns").get("crop") == CROPS.get(name, "integers")
    assert file.container.requires == REQUIRES.get(name, [])


def test_a_codec_file_without_a_checksum_is_read() -> None:
    codec, report = vqlabel.load_codec(GOLDEN / "unsummed.codec")
    assert (codec.kind, report) == ("vqae", {"held": {"labels": 1, "kl_T1": 0.5}})
    codes = torch.arange(40, dtype=torch.uint8).reshape(8, 5) % 20
    with torch.inference_mode():
        np.testing.assert_allclose(codec.decode(codes).numpy(), np.load(GOLDEN / "unsummed.labels.npy"), atol=1e-4)


def test_a_golden_file_decodes_to_its_recorded_labels(name: str) -> None:
    labels, want = vqlabel.open(GOLDEN / f"{name}.vql")[:].numpy(), np.load(GOLDEN / f"{name}.labels.npy")
    if VqlFile(GOLDEN / f"{name}.vql").codec["kind"] in (
        "vqae",
        "sparse",
    ):  # matrix products and exponentials differ between machines
        np.testing.assert_allclose(labels, want, atol=1e-4)
    else:
        np.testing.assert_array_equal(labels, want)


def test_a_golden_file_has_its_recorded_image_names() -> None:
    assert list(VqlFile(GOLDEN / "outside.vql").columns.names or ()) == [f"n{i % 3}/{i} é.JPEG" for i in range(10)]


def matrix(tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, int], bits: int) -> NDArray[np.float32]:
    """A stored matrix, dequantized by docs/format.md without vqlabel."""
    whole, scale = tensors[f"codec.decoder.{name}"], tensors[f"codec.decoder.{name}.scale"].astype(np.float32)
    if bits < 8:
        fields = np.unpackbits(whole, count=shape[0] * shape[1] * bits, bitorder="little").reshape(-1, bits) @ (
            1 << np.arange(bits)
        )
        whole = fields.reshape(shape) - (2 ** (bits - 1) - 1)
    return whole.astype(np.float32) * (scale if shape[0] >= shape[1] else scale[:, None])


def crop_features(crop: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    area = np.clip(crop[:, 2] * crop[:, 3], 0.0001, 4)
    return [*(np.clip(crop, -2, 2) - 0.5).T, 0.5 * np.log(area) + 0.5]


def test_a_prior_without_codes_matches_the_formula_in_the_format() -> None:
    """Labels without codes, computed by docs/format.md."""
    file = VqlFile(GOLDEN / "alone.vql")
    config, tensors = file.codec["config"], safetensors.numpy.load_file(GOLDEN / "alone.vql")
    prior, rows = config["prior"], np.load(GOLDEN / "alone.records.npy")
    assert prior["fields"] == ["mix", "crop", "flip", "partner_crop", "partner_flip", "box"]
    width, hidden, latent = prior["image_width"], prior["hidden"], config["latent"]
    bits, most = config["weight_bits"], min(8, config["weight_bits"] + 2)
    starts = np.flatnonzero(np.diff(rows["batch"], prepend=-1) != 0)
    partner = rows[np.repeat(starts, np.diff(np.append(starts, len(rows)))) + rows["mix_index"]]
    lam = rows["mix_lam"].astype(np.float32)
    features = [
        lam, lam * (1 - lam), *crop_features(rows["crop"]), rows["flip"] - 0.5, *crop_features(partner["crop"]), partner["flip"] - 0.5,
        *(np.clip(rows["mix_box"] / prior["view"], 0, 2) - 0.5).T,
    ]  # fmt: skip
    images = matrix(tensors, "prior.images", (prior["images"], width), bits)
    own, other = images[rows["image"]], images[partner["image"]]
    mix = lam[:, None] * own + (1 - lam[:, None]) * other
    x = np.concatenate([mix, own, other, np.stack(features, 1)], 1)
    inside = x @ matrix(tensors, "prior.inside.weight", (hidden, x.shape[1]), most).T + tensors["codec.decoder.prior.inside.bias"]
    bent = inside * 0.5 * (1 + np.vectorize(math.erf)(inside / math.sqrt(2)))
    z = mix @ matrix(tensors, "prior.mixed.weight", (latent, width), most).T
    z += bent @ matrix(tensors, "prior.outside.weight", (latent, hidden), most).T + tensors["codec.decoder.prior.outside.bias"]
    logits = z @ matrix(tensors, "out", (latent, config["classes"]), bits) + tensors["codec.decoder.bias"]
    np.testing.assert_allclose(logits, np.load(GOLDEN / "alone.labels.npy"), rtol=0, atol=1e-3)
    assert tensors["codes"].any() == 0 and file.container.streams["codes"].bits == (1,)


@pytest.mark.parametrize("name", ["sparse", "shared", "ranked"])
def test_sparse_labels_match_the_formula_in_the_format(name: str) -> None:
    file = VqlFile(GOLDEN / f"{name}.vql")
    config, codes = file.codec["config"], file.codes(0, file.records).astype(np.int64)
    k, ids, steps = config["k"], codes[:, : config["k"]], codes[:, config["k"] :].astype(np.float64)
    assert list(file.code_bits) == [4] * k + {"sparse": [4, 3, 2], "shared": [5, 6], "ranked": [4, 3, 3]}[name]
    if length := config["neighbours"]:
        packed = safetensors.numpy.load_file(GOLDEN / f"{name}.vql")["codec.neighbours"]
        near = np.unpackbits(packed, count=12 * length * 4, bitorder="little").reshape(12, length, 4) @ (1 << np.arange(4))
        order = [[*row, *sorted(set(range(12)) - set(row))] for row in near.tolist()]  # rank -> class, for each first class
        ids = np.array([[first, *(order[first][rank] for rank in ranks)] for first, *ranks in ids.tolist()])
    steps[:, 0] = np.maximum(steps[:, 0], 1 / 8)
    if name == "shared":
        steps[:, -1] = np.maximum(steps[:, -1], 1 / 4)
    logits = -np.concatenate([np.zeros((len(ids), 1)), np.cumsum(config["step"] * steps, 1)], 1)
    want = np.full((len(ids), config["classes"]), -10_000.0)
    if name == "shared":
        total = np.exp(logits[:, :k]).sum(1, keepdims=True) + (config["classes"] - k) * np.exp(logits[:, k:])
        want, logits = np.tile(np.exp(logits[:, k:]) / total, config["classes"]), np.exp(logits[:, :k]) / total
    np.put_along_axis(want, ids, logits, 1)
    np.testing.assert_allclose(want, np.load(GOLDEN / f"{name}.labels.npy"), rtol=1e-6)


def test_exact_classes_and_gain_match_the_formulas_in_the_format() -> None:
    file = VqlFile(GOLDEN / "head.vql")
    config, tensors = file.codec["config"], safetensors.numpy.load_file(GOLDEN / "head.vql")
    slots, head, d, n = config["slots"], config["head"], config["latent"], file.records
    assert min(config["temperature"]) == 1
    codes = file.codes(0, n).astype(np.int64)
    books, scale = tensors["codec.decoder.codebook"].astype(np.float32), tensors["codec.decoder.codebook.scale"].astype(np.float32)
    books = books * scale[:, None]  # k > d_h: one scale per latent dimension
    z = books[np.arange(slots), codes[:, :slots]].sum(1)
    center, gain = (tensors[f"codec.decoder.{name}"].astype(np.float32) for name in ("center", "contrast"))
    logits = (center + gain[slots] * (z - center)) @ matrix(tensors, "out", (d, config["classes"]), 8) + tensors[
        "codec.decoder.bias"
    ]
    ids, levels = codes[:, slots : slots + head], codes[:, slots + head :]
    rows, inside = np.arange(n)[:, None], np.zeros(logits.shape, bool)
    inside[rows, ids] = True
    others = np.log(np.exp(np.where(inside, -np.inf, logits)).sum(1, keepdims=True))
    exact = others + (levels / 2 - 5) - 0.05 * np.arange(head)
    logits = np.minimum(logits, exact.min(1, keepdims=True) - 0.05)
    logits[rows, ids] = exact
    np.testing.assert_allclose(logits, np.load(GOLDEN / "head.labels.npy"), rtol=0, atol=1e-3)


def test_variable_rate_labels_match_the_formula_in_the_format() -> None:
    """Both streams, decoded without vqlabel: the code counts, and the codes of all labels in one run."""
    file = VqlFile(GOLDEN / "variable.vql")
    config, tensors = file.codec["config"], safetensors.numpy.load_file(GOLDEN / "variable.vql")
    slots, k, d, n = config["slots"], config["codebook_size"], config["latent"], file.records
    assert file.container.requires == ["variable_slots"] and file.code_bits == (3, 5, 5, 5, 5)
    streams = file.container.streams
    counts, codes = (
        np.unpackbits(tensors[name], count=rows * bits, bitorder="little").reshape(rows, bits) @ (1 << np.arange(bits))
        for name, rows, bits in (("counts", n, 3), ("codes", streams["codes"].rows, 5))
    )
    assert (streams["counts"].rows, counts.sum()) == (n, len(codes)) and set(counts) == set(range(slots + 1))
    books = _books(tensors, (slots, k, d), config["weight_bits"])
    z, first = np.zeros((n, d), np.float32), 0
    for row, count in enumerate(counts):
        z[row] = sum(books[slot, code] for slot, code in enumerate(codes[first : first + count]))
        first += count
    center, gain = (tensors[f"codec.decoder.{name}"].astype(np.float32) for name in ("center", "contrast"))
    logits = (center + gain[slots] * (z - center)) @ matrix(tensors, "out", (d, config["classes"]), config["weight_bits"])
    np.testing.assert_allclose(logits + tensors["codec.decoder.bias"], np.load(GOLDEN / "variable.labels.npy"), rtol=0, atol=1e-3)


def _books(tensors: dict[str, NDArray[Any]], shape: tuple[int, int, int], bits: int) -> NDArray[np.float32]:
    """[m, k, d_h] code vectors; k > d_h, so there is one scale per latent dimension."""
    whole = np.unpackbits(tensors["codec.decoder.codebook"], count=math.prod(shape) * bits, bitorder="little").reshape(-1, bits)
    numbers = (whole @ (1 << np.arange(bits))).reshape(shape) - (2 ** (bits - 1) - 1)
    return numbers.astype(np.float32) * tensors["codec.decoder.codebook.scale"].astype(np.float32)[:, None]


def test_a_golden_file_has_its_recorded_places_and_columns(name: str) -> None:
    want, file, checked = np.load(GOLDEN / f"{name}.records.npy"), VqlFile(GOLDEN / f"{name}.vql"), 0
    for number, place in enumerate(file.columns.places):
        batch = file.columns.batch(number, np.empty((0, 0), np.float32))
        rows = want[file.columns.starts[number] : file.columns.starts[number + 1]]
        assert (rows["epoch"] == place.epoch).all() and (rows["batch"] == place.batch).all()
        for column in rows.dtype.names[2:]:
            value = getattr(batch, column)
            if file.columns.has(column):
                np.testing.assert_array_equal(np.broadcast_to(value, rows[column].shape), rows[column], err_msg=column)
            else:
                assert value is None
        checked += len(rows)
    assert checked == len(want) == file.records


def test_the_hex_dump_in_the_docs_matches_the_file_of_its_command(tmp_path: Path) -> None:
    page = FORMAT.read_text()
    array, slots = re.search(r"np\.array\((\[\[.*\]\])", page), re.search(r"--codec topk --slots (\d)", page)
    assert array and slots
    np.save(tmp_path / "tiny.npy", np.array(eval(array[1]), np.float16))
    codec = vqlabel.fit(tmp_path / "tiny.npy", FitConfig(codec="topk", slots=int(slots[1])))[0]
    vqlabel.pack(tmp_path / "tiny.npy", tmp_path / "tiny.vql", codec=codec)
    data, file = (tmp_path / "tiny.vql").read_bytes(), VqlFile(tmp_path / "tiny.vql")
    dumped = re.findall(r"^([0-9a-f]{8}): ((?:[0-9a-f]{2} )+)", page, re.MULTILINE)
    assert len(dumped) == 7
    for offset, line in dumped:
        assert data[int(offset, 16) :][:16] == bytes.fromhex(line)
    assert file.container.metadata["vql.streams"] in page.replace("\n ", "")
    header = page[page.index("## Header") : page.index("## Streams")]
    keys = set(re.findall(r"^\| `((?:vql\.)?\w+)` \| (?!U8|U64|n |B )", header, re.MULTILINE))
    others = {"vql.images", "vql.text"}  # an array without epochs has no known image set, and it is not of documents
    assert set(file.container.metadata) == keys - others


def test_every_limit_in_the_docs_is_a_constant_in_the_code() -> None:
    named = set(re.findall(r"`([A-Z_]{4,})`", FORMAT.read_text()))
    assert named == {name for name in vars(layout) if name.startswith("MAX_")} | {"NAME", "ITEM_BYTES"}
