"""docs/inputs.md: every row of its tables names an existing test."""

import ast
import re

from paths import ROOT

PAGE = (ROOT / "docs" / "inputs.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not re.match(r"\| (what you have|---)", line)]


def test_every_row_names_a_test_that_exists() -> None:
    assert len(ROWS) > 60
    for row in ROWS:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row.split(" | ")[-1])
        assert tests, f"no test in the row: {row}"
        for file, name in tests:
            functions = [node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
            assert name in functions, f"{file} has no {name}"


def test_the_page_lists_every_suffix_that_is_read() -> None:
    from vqlabel.labels.layouts.shards import READERS

    suffixes = {".npy", ".npz", ".safetensors", ".pt", ".pth", ".parquet", ".arrow", ".h5", ".tar"}
    assert suffixes <= READERS.keys()
    assert [suffix for suffix in suffixes if suffix not in PAGE] == []


def test_the_page_lists_every_layout() -> None:
    from vqlabel.labels import LAYOUTS

    titles = {"sre2l": "SRe2L", "lpld": "LPLD", "lpqld": "LPQLD", "gvbsm": "G-VBSM", "edc": "EDC", "hald": "HALD", "fkd": "FKD"}
    titles |= {"tinyvit": "TinyViT", "tensor": "DD-Ranking", "arrays": "Files of arrays"}
    assert titles.keys() == LAYOUTS.keys()
    assert [title for title in titles.values() if title not in PAGE] == []
