"""The reader in docs/second-reader.md, which does not import vqlabel, reads files that vqlabel writes."""

import re
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import GOLDEN, ROOT

import vqlabel
from vqlabel.bitstream import FIXED, ZSTD
from vqlabel.config import FitConfig
from vqlabel.container import ContainerWriter

PAGE = ROOT / "docs" / "second-reader.md"
CLASSES, RECORDS = 20, 300


@pytest.fixture(scope="module")
def block() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(code)


@pytest.fixture(scope="module")
def read_vql(block: str) -> Callable[[Path], NDArray[np.float32]]:
    names: dict[str, Callable[[Path], NDArray[np.float32]]] = {}
    exec(block, names)
    return names["read_vql"]


def test_the_reader_is_short_and_does_not_import_vqlabel(block: str) -> None:
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 27
    imported = {re.split(r"[ .]", line)[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"json", "numpy", "safetensors", "zstandard"}


@pytest.mark.parametrize(
    ("size", "weight_bits", "options"),
    [
        (16, 8, {}),
        (100, 5, {}),
        (256, 2, {}),
        (300, 7, {}),
        (16, 3, {"code_width": 3, "latent": None}),
        (8, 4, {"latent": 8}),  # a square codebook
        (16, 5, {"temperature": (1.0,)}),  # a tail gain
        (4, 6, {"latent": 19}),  # scales of the codebook and of the output map run along different axes
    ],
)
def test_the_reader_agrees_with_vqlabel_for_both_codings(
    read_vql: Callable[[Path], NDArray[np.float32]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    weight_bits: int,
    options: dict[str, Any],
) -> None:
    np.save(tmp_path / "a.npy", 4 * np.random.default_rng(0).standard_normal((RECORDS, CLASSES)).astype(np.float16))
    config = FitConfig(**{"slots": 3, "codebook_size": size, "latent": 8, "weight_bits": weight_bits, "epochs": 1, **options})
    codec = vqlabel.fit(tmp_path / "a.npy", config)[0]
    begin = ContainerWriter.begin

    def begin_with(self: ContainerWriter, codings: Any, name: str, bits: Any, _: Any = (), chunk_rows: int | None = None) -> None:
        begin(self, name, bits, codings, chunk_rows)

    for coding in (FIXED, ZSTD):
        monkeypatch.setattr(ContainerWriter, "begin", partialmethod(begin_with, (coding,)))
        vqlabel.pack(tmp_path / "a.npy", tmp_path / f"{coding.name}.vql", codec=codec)
        dataset = vqlabel.open(tmp_path / f"{coding.name}.vql")
        assert dataset.file.container.streams["codes"].coding is coding
        np.testing.assert_allclose(read_vql(tmp_path / f"{coding.name}.vql"), dataset[:].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["vqae", "grouped", "lifted"])
def test_the_reader_reads_the_golden_files(read_vql: Callable[[Path], NDArray[np.float32]], name: str) -> None:
    np.testing.assert_allclose(read_vql(GOLDEN / f"{name}.vql"), np.load(GOLDEN / f"{name}.labels.npy"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "feature"), [("variable", "variable_slots"), ("prior", "prior"), ("head", "head"), ("topk", "set()"), ("raw", "set()")]
)
def test_the_reader_names_the_feature_that_it_does_not_support(
    read_vql: Callable[[Path], NDArray[np.float32]], name: str, feature: str
) -> None:
    with pytest.raises(AssertionError, match=rf"{name}\.vql: this reader knows no .*{re.escape(feature)}"):
        read_vql(GOLDEN / f"{name}.vql")
