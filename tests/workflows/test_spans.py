"""A dump is cut into spans by its own content, and packed by spans in any order to the bytes of one pass."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import WriteDump

from vqlabel import FitConfig, LabelBatch, open_labels
from vqlabel.codecs import LabelCodec
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import Place
from vqlabel.workflows import encode, parallel
from vqlabel.workflows.encode import spans_of
from vqlabel.workflows.fit import fit
from vqlabel.workflows.pack import encode_dump


@pytest.fixture(autouse=True)
def _short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """About 40 records a span: 3 of the dump's batches."""
    monkeypatch.setattr(encode, "ENCODE_RECORDS", 40)


def shuffled(spans: list[range], seed: int) -> list[range]:
    return [spans[i] for i in np.random.default_rng(seed).permutation(len(spans))]


@pytest.fixture(params=["fixed", "variable", "topk"])
def any_codec(request: pytest.FixtureRequest, tree: Path, codec: LabelCodec) -> LabelCodec:
    if request.param == "fixed":
        return codec
    config = (
        FitConfig(codec="topk", slots=3)
        if request.param == "topk"
        else FitConfig(bits=12, variable_rate=True, epochs=1, prior=False)
    )
    return fit(tree, config)[0]


@pytest.mark.parametrize("workers", [1, 3])
def test_spans_in_any_order_give_the_bytes_of_one_pass(
    tree: Path, any_codec: LabelCodec, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_labels(tree)
    spans = spans_of(source)
    assert len(spans) == 8 and spans[0] == range(3)
    encode_dump(source, tmp_path / "one_pass.vql", any_codec)
    monkeypatch.setattr(parallel, "worker_count", lambda: workers)
    for seed in range(3):
        path = tmp_path / f"{seed}.vql"
        encode_dump(open_labels(tree), path, any_codec, spans=shuffled(spans, seed))
        assert path.read_bytes() == (tmp_path / "one_pass.vql").read_bytes()


def test_spans_cover_every_batch_once_and_do_not_depend_on_workers(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_labels(tree)
    spans = spans_of(source)
    assert list(chain.from_iterable(spans)) == list(range(len(source)))
    monkeypatch.setattr(parallel, "worker_count", lambda: 7)
    assert spans_of(open_labels(tree)) == spans


@pytest.mark.parametrize("wrong", ["the last is missing", "the first is missing", "one is added twice"])
def test_spans_that_are_not_the_whole_dump_are_refused_and_leave_no_file(
    wrong: str, tree: Path, codec: LabelCodec, tmp_path: Path
) -> None:
    source = open_labels(tree)
    spans = spans_of(source)
    spans = {"the last is missing": spans[:-1], "the first is missing": spans[1:], "one is added twice": [*spans, spans[2]]}[wrong]
    with pytest.raises(UsageError, match=r"batches.*must be all 24 of .*, each added once"):
        encode_dump(source, tmp_path / "a.vql", codec, spans=spans)
    assert not (tmp_path / "a.vql").exists()


@pytest.mark.parametrize("sizes", [(1, 60, 60, 3), (60, 1, 1, 1)])
def test_batches_of_very_different_sizes_are_encoded_in_groups_of_bounded_size(
    sizes: tuple[int, ...],
    batches: list[LabelBatch],
    codec: LabelCodec,
    write_dump: WriteDump,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, crop = np.concatenate([batch.labels for batch in batches]), np.tile(np.float32([0, 0, 1, 1]), (max(sizes), 1))
    uneven = [
        LabelBatch(labels=whole[:n], place=Place(0, i), image=(np.arange(n) + 20 * i) % 60, crop=crop[:n], flip=crop[:n, 0] > 0)
        for i, n in enumerate(sizes)
    ]
    tree = write_dump(tmp_path / "uneven", uneven, "lpqld")
    groups: list[int] = []
    encoded = encode.encode

    def record(codec: LabelCodec, batches: list[LabelBatch], *args: object) -> object:
        groups.append(sum(map(len, batches)))
        return encoded(codec, batches, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "encode", record)
    encode_dump(open_labels(tree), tmp_path / "a.vql", codec)
    assert sum(groups) == sum(sizes) and max(groups) <= 40 + 60


def test_a_batch_unlike_the_first_is_refused_in_any_order(
    batches: list[LabelBatch], codec: LabelCodec, write_dump: WriteDump, tmp_path: Path
) -> None:
    tree = write_dump(tmp_path / "tree", [*batches[:-1], replace(batches[-1], flip=None)])
    source = open_labels(tree)
    with pytest.raises(BadLabels, match="flip"):
        encode_dump(source, tmp_path / "a.vql", codec, spans=spans_of(source)[::-1])
    assert not (tmp_path / "a.vql").exists()
