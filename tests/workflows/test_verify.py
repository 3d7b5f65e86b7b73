"""Faults behind valid checksums, from Python and the shell.

Codes outside their codebook, an incomplete decoder, columns that training cannot use.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forge import Forge
from numpy.typing import NDArray
from paths import GOLDEN
from torch import Tensor
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.codecs import LabelCodec
from vqlabel.container import verify as verify_bytes
from vqlabel.errors import BadContainer


def refused(path: Path, message: str) -> None:
    verify_bytes(path)  # valid: only the codec's configuration shows the fault
    with pytest.raises(BadContainer, match=message) as error:
        vqlabel.verify(path)
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"vqlabel: {error.value}\n")


def test_an_intact_file_gives_its_counts(vql: Path) -> None:
    assert vqlabel.verify(vql) == verify_bytes(vql)


def test_a_code_outside_its_codebook_is_refused_at_any_position(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = vqlabel.fit(dump, FitConfig(codec="topk", slots=2))[0]
    encode = codec.encode

    def forged(labels: Tensor, context: object = None) -> Tensor:
        codes = encode(labels)
        codes[-1, 1] = 40  # of classes 0..39
        return codes

    monkeypatch.setattr(codec, "encode", forged)
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    monkeypatch.setattr("vqlabel.workflows.verify.CODES_RECORDS", 100)
    refused(tmp_path / "a.vql", r"a\.vql: code 40 is outside 0\.\.39 .*damaged or forged")


def test_a_decoder_that_lacks_a_tensor_is_refused(
    dump: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = codec.decoder_tensors()
    monkeypatch.setattr(
        codec, "decoder_tensors", lambda: {name: t for name, t in tensors.items() if not name.startswith("decoder.out")}
    )
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    refused(tmp_path / "a.vql", r"a\.vql: .*decoder\.out")


def nan() -> NDArray[Any]:
    return np.array([float("nan")], "<f8").view("<u4").astype(np.uint64)


def filled_with(value: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda rows: np.broadcast_to(np.asarray(value, np.uint64), rows.shape)


FAULTS = {
    "lambda NaN": ("raw", "columns.mix_lam", filled_with(nan()), [32, 32], "batch 0: its lambda is not in 0..1"),
    "lambda 2": ("raw", "columns.mix_lam", filled_with([0, 0x40000000]), [32, 32], "batch 0: its lambda is not in 0..1"),
    "a crop outside its image": (
        "raw",
        "columns.crop",
        filled_with(60_000),
        [16] * 4,
        "record 0: its crop is not inside its image",
    ),
    "a crop without a pixel": ("raw", "columns.crop", filled_with(0), [1] * 4, "its crop is not inside its image"),
    "a flip of 2": ("raw", "columns.flip", filled_with(2), [2], "column 'flip' has fields of 2 bits; the limit is 1"),
    "a partner outside its batch": (
        "raw",
        "columns.mix_index",
        filled_with(7),
        [3],
        "record 0: its mix_index is outside its batch",
    ),
    "a box outside all views": (
        "raw",
        "columns.mix_box",
        filled_with(100_000),
        [17] * 4,
        "batch 0: its mix_box is outside views of 65536 pixels",
    ),
    "strips that are not a permutation": (
        "outside",
        "columns.patches",
        filled_with(1),
        [2] * 6,
        "record 0: its patches are not a permutation of strips",
    ),
    "a cutout of NaN": (
        "outside",
        "columns.cutout",
        filled_with(0x7E00),
        [16] * 7,
        "record 0: its cutout is not inside a view|32 bits",
    ),
    "operations of NaN": ("outside", "columns.ops", filled_with(0x7E00), [16] * 6, "record 0: its ops contain NaN or Inf"),
    "a class twice": ("topk", "codes", filled_with([1, 1, 1] + [0x3C00] * 3), [4] * 3 + [16] * 3, "label 0 has a class twice"),
    "a label of NaN": ("raw", "codes", filled_with(0x7E00), [16] * 12, "label 0 decodes to NaN or Inf"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_columns_and_labels_that_training_cannot_use_are_refused(case: str, tmp_path: Path) -> None:
    name, column, change, bits, message = FAULTS[case]
    forge = Forge(GOLDEN / f"{name}.vql")
    forge.put(column, change(forge.rows(column)), bits)
    if case == "a cutout of NaN":
        forge.metadata["vql.columns"]["cutout"] = "float16"
    with pytest.raises(BadContainer, match=message):
        vqlabel.verify(forge.write(tmp_path / "a.vql"))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.vql")), ids=lambda path: path.stem)
def test_golden_files_pass_all_checks(path: Path) -> None:
    assert vqlabel.verify(path) == verify_bytes(path)
