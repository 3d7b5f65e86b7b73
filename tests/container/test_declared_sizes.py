"""Small files that declare large sizes: refused before memory or time is spent, and not trusted by `stats`."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import Forge
from paths import GOLDEN
from typer.testing import CliRunner

import vqlabel
from vqlabel.cli import app
from vqlabel.errors import BadContainer, BadLabels, UsageError
from vqlabel.labels import SparseLabels
from vqlabel.report import stats
from vqlabel.training.views import VqlViews
from vqlabel.vql.file import VqlFile
from vqlabel.vql.source import VqlSource

FULL = 1 << 16  # rows of the longest chunk


def wide_batch(f: Forge) -> None:
    f.zeros("columns.batch", [[8, 128]], FULL, 8)


def wide_sizes(f: Forge) -> None:
    f.zeros("columns.image_size", [[8, 128]], FULL, 8)


def many_sizes(f: Forge) -> None:
    f.zeros("columns.image_size", [[16, 2]], FULL, 256)


def many_batches(f: Forge) -> None:
    f.zeros("columns.batch", [[1, 3]], FULL, 64)


def huge_batch(f: Forge) -> None:
    f.metadata["vql.codec"] = {"kind": "topk", "config": {"classes": 12, "domain": "logits", "k": 1}}
    f.zeros("codes", [[4, 1], [16, 1]], FULL, 32)
    for name in list(f.metadata["vql.streams"]):
        if name.startswith("columns."):
            f.drop(name)
    f.metadata["vql.columns"] = {"order": "none"}
    f.put("columns.batch", np.array([[0, 0, 32 * FULL]]), [1, 1, 22])


def recipe(**values: Any) -> Callable[[Forge], None]:
    def change(f: Forge) -> None:
        f.metadata["vql.columns"]["recipe"].update(values)
        f.put("columns.image_size", np.array([[40, 50]]), [6, 6])
        f.put("columns.drawn", np.array([[0]]), [1])

    return change


def one_bit_fields(f: Forge) -> None:
    f.zeros("codes", [[1, 1 << 21]], 8, 5)


DECLARED = {
    "a column of 128 fields": ("raw", wide_batch, "column 'batch' has 524288 rows of 128 fields; expected rows of 3 fields"),
    "sizes of 128 fields": ("raw", wide_sizes, "column 'image_size' has 524288 rows of 128 fields"),
    "sizes of 2^24 images": ("raw", many_sizes, "column 'image_size' has 16777216 rows; the format allows"),
    "2^22 batches": ("raw", many_batches, "column 'batch' has 4194304 rows; the format allows|column 'mix_lam'"),
    "a batch of 2^21 labels": ("raw", huge_batch, "a batch of 2097152 records; the format allows 1048576"),
    "a recipe of one batch of 2^24": ("pruned", recipe(images=1 << 24, batch=1 << 24, epochs=1), "must be at most 65536 images"),
    "a recipe of 2^24 images": ("pruned", recipe(images=1 << 24, batch=8, epochs=1), "its recipe draws|draws from 16777216 images"),
    "2^21 fields of a bit": ("raw", one_bit_fields, "codes of 2097152 x 1 bits, the codec's are 12 x 16"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_file_that_declares_large_sizes_is_refused_in_little_memory(case: str, tmp_path: Path) -> None:
    name, change, message = DECLARED[case]
    forge = Forge(GOLDEN / f"{name}.vql")
    change(forge)
    path = forge.write(tmp_path / "a.vql")
    tracemalloc.start()
    with pytest.raises(BadContainer, match=message) as found:
        vqlabel.open(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert str(path) in str(found.value)


def test_a_batch_whose_labels_exceed_the_memory_limit_is_refused(tmp_path: Path) -> None:
    forge = Forge(GOLDEN / "raw.vql")
    huge_batch(forge)
    forge.metadata["vql.codec"]["config"]["classes"] = forge.metadata["vql.label"]["classes"] = 1 << 20
    forge.zeros("codes", [[20, 1], [16, 1]], 4096, 1)
    forge.put("columns.batch", np.array([[0, 0, 4096]]), [1, 1, 13])
    path = forge.write(tmp_path / "a.vql")
    with pytest.raises(UsageError, match="4096 labels of 1048576 classes'; it takes 17 GB, above 4"):
        next(vqlabel.open(path).batches())
    assert len(vqlabel.open(path)[0]) == 1 << 20
    tracemalloc.start()
    labels = VqlSource(path).read(0).labels
    assert isinstance(labels, SparseLabels) and labels.shape == (4096, 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    with pytest.raises(BadLabels, match="4096 top-k labels of 1048576 classes have 4294967296 numbers as dense labels"):
        labels.as_dense()


def test_names_without_bytes_are_refused(tmp_path: Path) -> None:
    forge, text = Forge(GOLDEN / "outside.vql"), b"\n" * FULL
    import zstandard

    forge.chunks("columns.names", [zstandard.compress(text)] * 4, [FULL] * 4, [[8, 1]], "zstd")
    with pytest.raises(BadContainer, match="column 'names' has 262144 rows; the format allows"):
        VqlFile(forge.write(tmp_path / "a.vql"))
    short = b"\n" * 4096
    forge.chunks("columns.names", [zstandard.compress(short)], [4096], [[8, 1]], "zstd")
    with pytest.raises(BadContainer, match="4097 names of images in 64 bytes; the format requires a byte per name"):
        assert VqlFile(forge.write(tmp_path / "a.vql")).columns.names


def config(**values: Any) -> Callable[[Forge], None]:
    return lambda f: f.metadata["vql.codec"]["config"].update(values)


def details(value: Any) -> Callable[[Forge], None]:
    return lambda f: f.metadata["vql.source"].update(details=value)


def small_book(f: Forge) -> None:
    f.tensor("codec.decoder.codebook", "I8", [1], b"\0")


STATS_CASES = {
    "more slots": ("vqae", config(slots=6), "codes of 5 x 5 bits, the codec's are 6 x 5"),
    "2^40 slots": ("vqae", config(slots=1 << 40), "slots is 1099511627776"),
    "2^24 codes": ("vqae", config(codebook_size=1 << 24), "codebook_size is 16777216"),
    "a list of codes": ("alone", config(codebook_size=[1]), "codebook_size is"),
    "a codebook of a byte": ("vqae", small_book, "its codebook is too small for 5 slots of 20 codes"),
}


@pytest.mark.parametrize("case", STATS_CASES)
def test_stats_checks_the_header(case: str, tmp_path: Path) -> None:
    name, change, message = STATS_CASES[case]
    forge = Forge(GOLDEN / f"{name}.vql")
    change(forge)
    path = forge.write(tmp_path / "a.vql")
    with pytest.raises(BadContainer, match=message):
        stats(path)
    result = CliRunner().invoke(app, ["stats", str(path)])
    assert (result.exit_code, result.stdout) == (3, "")


@pytest.mark.parametrize("value", [[], None, "x", {"pruned": {"keep": 0.5}}, {"pruned": {"keep": "x", "by": 1, "seed": []}}])
def test_stats_ignores_invalid_details(value: Any, tmp_path: Path) -> None:
    forge = Forge(GOLDEN / "raw.vql")
    details(value)(forge)
    path = forge.write(tmp_path / "a.vql")
    labels = vqlabel.open(path)[:].numpy()
    np.save(tmp_path / "a.npy", labels)
    assert "pruned" not in stats(path, against=tmp_path / "a.npy")


def test_a_tensor_of_a_later_version_is_counted_but_not_used(tmp_path: Path) -> None:
    forge = Forge(GOLDEN / "raw.vql")
    forge.tensor("columns.extra", "U8", [8], bytes(8))
    forge.tensor("note", "F16", [4], bytes(8))
    path = forge.write(tmp_path / "a.vql")
    torch.testing.assert_close(vqlabel.open(path)[:], vqlabel.open(GOLDEN / "raw.vql")[:], rtol=0, atol=0)
    assert vqlabel.verify(path)["tensors"] == vqlabel.verify(GOLDEN / "raw.vql")["tensors"] + 2
    found = stats(path)
    assert found["bytes"]["total"] == path.stat().st_size
    assert {row["part"] for row in found["rows"]} >= {"columns.extra", "note"}


@pytest.mark.parametrize(("scale", "dtype"), [(3.4e38, np.float32), (1e30, np.float32)])
def test_figures_beyond_float32_are_null_in_valid_json(scale: float, dtype: Any, tmp_path: Path) -> None:
    labels = (np.sign(np.random.default_rng(0).standard_normal((40, 6))) * scale).astype(dtype)
    np.save(tmp_path / "a.npy", labels)
    for codec, slots in (("raw", []), ("topk", ["--slots", "2"])):
        out = tmp_path / f"{codec}.vql"
        command = ["pack", str(tmp_path / "a.npy"), "-o", str(out), "--codec", codec, *slots]
        assert CliRunner().invoke(app, command).exit_code == 0
        command = ["stats", str(out), "--against", str(tmp_path / "a.npy")]
        assert CliRunner().invoke(app, command).exit_code == 0
        result = CliRunner().invoke(app, [*command, "--json"])

        def refuse(token: str) -> None:
            raise AssertionError(token)

        found = json.loads(result.stdout, parse_constant=refuse)
        assert found["distortion"]["top1_agreement"] is not None


def test_unused_bits_of_a_matrix_are_refused_with_the_files_name(tmp_path: Path) -> None:
    forge = Forge(GOLDEN / "lifted.vql")
    forge.body[forge.span("codec.decoder.lift").stop - 1] |= 0x80
    path = forge.write(tmp_path / "a.vql")
    with pytest.raises(BadContainer, match=r"a\.vql: codec tensor 'decoder\.lift': .* unused high bits"):
        vqlabel.open(path)[0]


def test_info_shows_no_control_characters(tmp_path: Path) -> None:
    forge = Forge(GOLDEN / "raw.vql")
    forge.metadata["vql.writer"] = "\x1b]0;title\x07red\x9b"
    result = CliRunner().invoke(app, ["info", str(forge.write(tmp_path / "a.vql"))])
    assert result.exit_code == 0 and "\\x1b]0;title\\x07red\\x9b" in result.stdout
    assert all(c.isprintable() or c == "\n" for c in result.stdout)


def test_an_error_message_quotes_little_of_a_long_header(tmp_path: Path) -> None:
    forge = Forge(GOLDEN / "raw.vql")
    forge.metadata["vql.columns"] = {"order": "x" * 1_000_000}
    with pytest.raises(BadContainer) as found:
        VqlFile(forge.write(tmp_path / "a.vql"))
    assert len(str(found.value)) < 1000


def test_views_that_exceed_the_memory_limit_are_refused() -> None:
    from vqlabel.training.image_checks import check_view_memory

    check_view_memory(4096, 224)
    for side in (60_000, 4097):
        with pytest.raises(UsageError, match=rf"side of a view is {side}; it must be at most 4096 pixels"):
            check_view_memory(1, side)
    with pytest.raises(
        UsageError,
        match=r"200000; it must be at most 14266 at 224 pixels a side \(120\.4 GB requested, limit 8\.6 GB\); request fewer records",
    ):
        check_view_memory(200_000, 224)
    assert VqlViews
