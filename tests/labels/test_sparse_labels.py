"""Top-k labels stay ids and values through every workflow, and each of their operations equals that of dense labels."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import CODECS
from vqlabel.errors import BadLabels, WrongType
from vqlabel.labels import About, SparseLabels, Support, open_labels
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.checks import check_domain, check_finite
from vqlabel.labels.constant_rows import ConstantRows
from vqlabel.labels.sparse import BUFFER_BYTES, as_dense, concatenate, hash_labels, row_sums
from vqlabel.labels.topk import sparse_labels, sparse_probs, to_probabilities, topk
from vqlabel.metrics.calibration import Calibration
from vqlabel.metrics.distortion import Distortion
from vqlabel.metrics.pairs import pairs
from vqlabel.vql.decode import decode_steps, narrow
from vqlabel.vql.source import VqlSource
from vqlabel.workflows.convert import convert
from vqlabel.workflows.verify import verify

K, WIDE_ROWS = 5, 64
RNG = np.random.default_rng


def draw(n: int, classes: int, k: int = K, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] different classes, and descending logits."""
    rng = RNG(seed)
    ids = np.stack([rng.choice(classes, k, replace=False) for _ in range(n)])
    ids[0, 0] = classes - 1  # so that the number of classes can be inferred
    return ids.astype(np.int64), -np.sort(-3 * rng.normal(size=(n, k)), axis=1).astype(np.float32)


def probs_of(logits: np.ndarray, mass: float = 0.9) -> np.ndarray:
    exp = np.exp((logits - logits.max(1, keepdims=True)) / 4)  # so flat that the other classes can share the rest
    probs: np.ndarray = (mass * exp / exp.sum(1, keepdims=True)).astype(np.float32)
    return probs


def lpqld(folder: Path, classes: int) -> int:
    folder.mkdir()
    for number in range(2):
        ids, logits = draw(80, classes, seed=number)
        views = [torch.tensor([[0.1, 0.1, 0.5, 0.5]] * 80).half(), torch.zeros(80, dtype=torch.bool), None, None, None]
        torch.save([*views, torch.from_numpy(logits).half(), torch.from_numpy(ids).short()], folder / f"batch_{number}.tar")
    order = {number: list(range(80 * number, 80 * number + 80)) for number in range(2)}
    (folder / "sampler_indices_batch.json").write_text(json.dumps(order))
    return 160


def tinyvit(folder: Path, classes: int) -> int:
    for epoch in range(2):
        package = folder / f"logits_top{K}_epoch{epoch}"
        package.mkdir(parents=True)
        ids, logits = draw(80, classes, seed=epoch)
        rows = np.zeros(80, np.dtype([("seed", "<i4"), ("ids", "<i2", (K,)), ("values", "<f2", (K,))]))
        rows["ids"], rows["values"] = ids, probs_of(logits)
        (package / "rank0-values.bin").write_bytes(rows.tobytes())
        (package / "rank0-keys.txt").write_text("".join(f"{image}\n" for image in range(80)))
    return 160


def fkd(folder: Path, classes: int) -> int:
    return _fkd(folder, classes, lambda ids, probs: np.stack([ids.astype(np.float32), probs], 1))


def fkd_hard(folder: Path, classes: int) -> int:
    return _fkd(folder, classes, lambda ids, probs: ids[:, 0])


def _fkd(folder: Path, classes: int, form: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> int:
    folder.mkdir()
    for image in range(12):
        ids, logits = draw(8, classes, seed=image)
        views = [torch.tensor([[0.1, 0.1, 0.5, 0.5]] * 8), torch.zeros(8, dtype=torch.bool)]
        torch.save([*views, torch.from_numpy(form(ids, probs_of(logits)))], folder / f"{image:02}.tar")
    return 96


CASES = {
    "lpqld, sparse": (lpqld, 1 << 15, "sparse", {}),  # its class ids are int16, as TinyViT's
    "lpqld, topk": (lpqld, 1 << 15, "topk", {}),
    "tinyvit, sparse": (tinyvit, 1 << 15, "sparse", {}),
    "fkd ms-k5, sparse": (fkd, 1 << 16, "sparse", {}),
    "fkd hard, topk": (fkd_hard, 1 << 16, "topk", {}),
}


@pytest.mark.parametrize(("make", "classes", "kind", "options"), CASES.values(), ids=list(CASES))
def test_no_workflow_widens_top_k_labels(
    make: Callable[[Path, int], int], classes: int, kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    records, vql = make(tmp_path / "dump", classes), tmp_path / "a.vql"
    whole, codec_type = SparseLabels.as_dense, CODECS[kind].codec

    def few_rows(labels: SparseLabels) -> Any:
        assert len(labels) <= WIDE_ROWS, "widened"
        return whole(labels)

    def refused(*_: Any) -> Any:
        raise AssertionError("decoded to dense labels")

    with monkeypatch.context() as patch:
        patch.setattr(SparseLabels, "as_dense", few_rows)
        patch.setattr(import_module("vqlabel.report.account"), "MAX_IMAGES", 1 << 10)  # bytes of an array, for any number of labels
        patch.setattr(codec_type, "_encode", refused if kind == "topk" else codec_type._encode)
        patch.setattr(codec_type, "_decode", refused)
        tracemalloc.start()
        source = open_labels(tmp_path / "dump", classes=classes)
        assert vqlabel.pack(source, vql, FitConfig(codec=kind, **options))["records"] == records
        verify(vql)
        stats = vqlabel.stats(vql, against=source)
        vqlabel.unpack(vql, tmp_path / "back")
        convert(source, tmp_path / "copy", layout=source.layout)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < records * classes * 4 / 4
    assert stats["same_dump"] and stats["distortion"]["top1_agreement"] == 1 and stats["distortion"]["kl_T1"] < 0.02
    _check_equals_dense_path(vql, source, tmp_path)


def _check_equals_dense_path(vql: Path, source: Any, folder: Path) -> None:
    """The unpacked dump has the ids and values of the dense decoded labels; the file has the sha256 of dense labels."""
    decoded = VqlSource(vql)
    k, dtype = source.support.k, decoded.torch_dtype
    steps = decode_steps(decoded.file, decoded.codec, 0, decoded.file.records)
    dense = [narrow(labels, dtype, decoded.file, 0).numpy() for labels in steps]
    signed = source.domain == "probs"
    expected = [topk(labels, k, signed_zeros=signed) for labels in dense]
    back = open_labels(folder / "back", classes=source.classes)
    found = [topk(batch.labels, k, signed_zeros=signed) for batch in back]
    for part in (0, 1):  # ids, values
        assert np.array_equal(np.concatenate([x[part] for x in expected]), np.concatenate([x[part] for x in found]))
    for original, copy in zip(source, open_labels(folder / "copy", classes=source.classes), strict=True):
        assert np.array_equal(topk(original.labels, k)[0], topk(copy.labels, k)[0])
        assert np.array_equal(topk(original.labels, k)[1], topk(copy.labels, k)[1])
    digest = hashlib.sha256()
    for batch in source:
        for at in range(0, len(batch), 32):
            digest.update(as_dense(batch.labels[at : at + 32]).tobytes())
    assert decoded.file.source["labels_sha256"] == digest.hexdigest()


# --- operations


def made(domain: str, rest: str, n: int = 200, classes: int = 40, dtype: str = "f4", seed: int = 0) -> SparseLabels:
    ids, logits = draw(n, classes, seed=seed)
    if domain == "logits":
        return sparse_labels(ids, logits.astype(dtype), classes, "made", NOWHERE)
    return sparse_probs(ids, probs_of(logits).astype(dtype), classes, "made", rest)


FORMS = [("logits", "zero"), ("probs", "zero"), ("probs", "uniform")]


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize(("domain", "rest"), FORMS)
def test_operations_equal_those_of_dense_labels(domain: str, rest: str, dtype: str) -> None:
    labels = made(domain, rest, dtype=dtype)
    dense = labels.as_dense()
    assert labels.shape == dense.shape and labels.dtype == dense.dtype and (np.sort(dense)[:, : labels.others] == labels.rest).all()
    rows = np.array([7, 3, 3])
    assert np.array_equal(labels[rows].as_dense(), dense[rows]) and np.array_equal(labels[5:9].as_dense(), dense[5:9])
    assert np.array_equal(as_dense(concatenate([labels[:3], labels[3:]])), dense)
    np.testing.assert_allclose(row_sums(labels, np.float64), row_sums(dense, np.float64), rtol=1e-12)
    for k in (1, 3, 5, 8, 40):
        for signed in (False, True):
            for ours, theirs in zip(topk(labels, k, signed_zeros=signed), topk(dense, k, signed_zeros=signed), strict=True):
                assert np.array_equal(ours, theirs)
    about = About(layout="", classes=40, domain=domain, dtype="F32", order="none", support=Support(k=5, rest=rest))
    np.testing.assert_allclose(as_dense(to_probabilities(labels, about)), to_probabilities(dense, about), rtol=1e-6)
    tensors = labels.map(torch.from_numpy)
    assert np.array_equal(tensors.as_dense().numpy(), dense)


def test_equal_values_are_ordered_by_class_among_stored_and_other_classes() -> None:
    labels = sparse_labels(np.array([[6, 1, 4]]), np.array([[2.0, 0.0, 0.0]], np.float32), 8, "made", 0.0)
    assert topk(labels, 5)[0].tolist() == topk(labels.as_dense(), 5)[0].tolist() == [[6, 0, 1, 2, 3]]


@pytest.mark.parametrize("classes", [40, BUFFER_BYTES])
def test_the_hash_is_that_of_the_dense_labels(classes: int) -> None:
    labels = made("probs", "uniform", n=70, classes=classes, dtype="f2")
    ours, theirs = hashlib.sha256(), hashlib.sha256(labels.as_dense().tobytes())
    hash_labels(ours, labels[:33])
    hash_labels(ours, labels[33:])
    assert ours.hexdigest() == theirs.hexdigest()


def test_checks_find_the_row_and_the_class_of_a_bad_value() -> None:
    labels = made("logits", "zero")
    labels.values[3, 2] = np.nan
    with pytest.raises(BadLabels, match=f"made, row 3: class {labels.ids[3, 2]} is nan"):
        check_finite(labels, "made")
    probs = made("probs", "zero")
    check_domain(probs, "probs", "made", Support(k=K, rest="zero"))
    with pytest.raises(BadLabels, match=r"made, row 0: sums to 0\.9 "):
        check_domain(probs, "probs", "made", Support(k=K, rest="uniform"))
    probs.values[2] = 0
    with pytest.raises(BadLabels, match=r"made, row 2: all zero \(1 of the 200 rows"):
        check_domain(probs, "probs", "made", Support(k=K, rest="zero"))
    counted = ConstantRows(path=Path("made"))
    assert counted.add(probs).tolist() == [row != 2 for row in range(200)] and counted.zero == 1


def test_codecs_of_dense_labels_and_numpy_refuse_sparse_ones() -> None:
    labels = made("logits", "zero").map(torch.from_numpy)
    codec = CODECS["raw"].codec(CODECS["raw"].config(classes=40, domain="logits", dtype="F32"))
    with pytest.raises(BadLabels, match=r"labels are sparse, and codec raw takes dense ones \[n, C\]: pass labels.as_dense"):
        codec.encode(labels)
    with pytest.raises(WrongType, match=r"labels are sparse, ids and values \[n, k\]; labels.as_dense\(\) is the array"):
        np.asarray(labels)


@pytest.mark.parametrize(("domain", "rest"), FORMS)
def test_metrics_of_sparse_labels_are_those_of_dense_ones(domain: str, rest: str) -> None:
    raw, decoded = (made(domain, rest, seed=seed).map(torch.from_numpy) for seed in (0, 1))
    decoded.ids[:150] = raw.ids[:150]  # most labels share all classes, the others a few
    sets, figures = rest == "zero", []
    for pair in (pairs(raw, decoded, domain, sets=sets), [(raw.as_dense(), decoded.as_dense())]):
        distortion = Distortion(domain=domain, sets=sets)
        for x, y in pair:
            distortion.add(x, y)
        figures.append(distortion.figures())
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    temperatures, found = (1.0, 4.0), []
    for pair in (pairs(raw, decoded, domain, sets=domain == "logits"), [(raw.as_dense(), decoded.as_dense())]):
        calibration = Calibration(domain=domain, temperatures=temperatures)
        for x, y in pair:
            calibration.add(x, y, 40)
        found.append(calibration.figures())
    for t in ("T1", "T4"):
        for name in ("slope", "intercept", "ece", "relative_ece", "entropy"):
            assert found[0][t][name] == pytest.approx(found[1][t][name], rel=1e-4), (t, name)
