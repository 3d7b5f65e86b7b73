"""Labels with k known entries: exact ids, their distribution to within a step, and the mass of the other classes."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import LabelSample, fit_codec
from vqlabel.codecs.fit import with_codec
from vqlabel.codecs.sparse.codec import SparseCodec
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.codecs.sparse.fit import DEFAULT_STEP
from vqlabel.codecs.sparse.neighbours import FILLED_ROWS, choose_neighbours
from vqlabel.config import MIX
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import Support
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.sparse import SparseLabels, as_dense
from vqlabel.labels.topk import sparse_labels as of_ids
from vqlabel.labels.topk import sparse_probs, topk
from vqlabel.metrics.distortion import Distortion

CLASSES, LABELS = 40, 300
FORMS = [
    ("logits", "zero"),
    ("probs", "zero"),
    ("probs", "uniform"),
]  # LPQLD's; FKD's, re-normalised; FKD's, smoothed, and TinyViT's


def sparse_labels(domain: str, rest: str, k: int, dtype: str = "f2", scale: float = 3.0) -> Tensor:
    """[LABELS, CLASSES] labels with k known entries, as a reader of such a dump returns them."""
    logits = scale * np.random.default_rng(k).normal(size=(LABELS, CLASSES))
    if domain == "logits":
        ids, values = topk(logits.astype(dtype), k)
        return torch.from_numpy(of_ids(ids, values, CLASSES, "made", NOWHERE).as_dense())
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ids, values = topk(probs.astype(np.float32), k)
    if rest == "zero":
        values = values / values.sum(1, keepdims=True)
    return torch.from_numpy(sparse_probs(ids, values.astype(dtype), CLASSES, "made", rest).as_dense())


def sample_of(labels: Tensor, domain: str, rest: str, k: int) -> LabelSample:
    return LabelSample(
        train=labels[:-50],
        held_out=labels[-50:],
        train_context=None,
        held_out_context=None,
        domain=domain,
        dtype="F16",
        support=Support(k=k, rest=rest),
    )


def fit(labels: Tensor, domain: str, rest: str, k: int, **options: Any) -> SparseCodec:
    codec = fit_codec(sample_of(labels, domain, rest, k), FitConfig(codec="sparse", **options))
    assert isinstance(codec, SparseCodec)
    return codec


def through(codec: SparseCodec, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    decoded = codec.decode(codec.encode(labels))
    figures = Distortion(domain=codec.config.domain, sets=codec.config.rest == "zero")
    figures.add(labels, decoded)
    return decoded, figures.figures()


@pytest.mark.parametrize("k", [1, 2, 5, CLASSES - 1, CLASSES])
@pytest.mark.parametrize(("domain", "rest"), FORMS)
def test_classes_are_exact_and_their_kl_is_within_the_bound(domain: str, rest: str, k: int) -> None:
    labels = sparse_labels(domain, rest, k)
    decoded, figures = through(fit(labels, domain, rest, k), labels)
    ids = [topk(x.numpy(), k, signed_zeros=domain == "probs")[0] for x in (labels, decoded)]
    assert np.array_equal(*(np.sort(x, 1) for x in ids)) and np.array_equal(ids[0][:, 0], ids[1][:, 0])
    assert figures["top1_agreement"] == 1
    assert figures.get("mass_kept", 1) == pytest.approx(1, abs=1e-6)
    bound = (
        DEFAULT_STEP**2 / 24
    )  # of errors spread evenly over a step, at any temperature; gaps beyond their fields cost a little more
    assert all(figures[f"kl_T{t:g}"] < 1.5 * bound for t in MIX)
    if domain == "probs":
        torch.testing.assert_close(decoded.sum(1), torch.ones(LABELS), atol=1e-5, rtol=0)
    elif k < CLASSES:
        assert float(decoded.min()) == NOWHERE and float(decoded.max()) == 0


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_the_mass_of_the_other_classes_is_kept_and_each_stays_below_the_known_ones(dtype: str) -> None:
    labels = sparse_labels("probs", "uniform", 5, dtype, scale=0.3)  # so flat that the other classes have most of the mass
    decoded, _ = through(fit(labels, "probs", "uniform", 5), labels)
    raw_rest, decoded_rest = (1 - x.topk(5).values.sum(1) for x in (labels.float(), decoded))
    assert float(raw_rest.mean()) > 0.7
    torch.testing.assert_close(decoded_rest, raw_rest, atol=DEFAULT_STEP / 8 + 0.01, rtol=0)
    top = decoded.half().topk(6).values
    assert bool((top[:, 4] > top[:, 5]).all()), "also in fp16"


def test_finer_steps_take_more_bits_and_lower_the_kl() -> None:
    labels = sparse_labels("logits", "zero", 8)
    results = [
        (codec, through(codec, labels)[1]) for codec in (fit(labels, "logits", "zero", 8, bits=bits) for bits in (60, 70, 80, 90))
    ]
    for (coarse, more), (fine, less) in itertools.pairwise(results):
        assert fine.config.step < coarse.config.step and sum(fine.code_bits) > sum(coarse.code_bits)
        assert all(less[f"kl_T{t:g}"] < more[f"kl_T{t:g}"] for t in MIX)
    for bits, (codec, _) in zip((60, 70, 80, 90), results, strict=True):
        assert sum(codec.code_bits) <= bits and codec.config.k == 8


def test_too_few_bits_for_all_classes_keep_the_largest_and_report_their_mass() -> None:
    labels = sparse_labels("logits", "zero", 8)
    codec = fit(labels, "logits", "zero", 8, bits=30)
    assert codec.config.k == 4 and sum(codec.code_bits) <= 30
    mass = labels.float().softmax(1).topk(4).values.sum(1).mean()
    assert through(codec, labels)[1]["mass_kept"] == pytest.approx(float(mass), abs=1e-5)
    with pytest.raises(UsageError, match=r"bits is 5; it must be about 6 or more, the bits of one class id of 40 classes"):
        fit(labels, "logits", "zero", 8, bits=5)


def test_a_gap_that_exceeds_its_field_is_compensated_by_the_next_gaps() -> None:
    config = SparseConfig(classes=9, domain="logits", k=4, rest="zero", step=1.0, gaps=(0, 3, *[0] * 10), rest_bits=0)
    labels = torch.full((1, 9), NOWHERE).scatter(1, torch.tensor([[7, 2, 5, 0]]), torch.tensor([[10.0, 4.0, 3.0, 2.0]]))
    codec = SparseCodec(config)
    assert codec.encode(labels).tolist() == [[7, 2, 5, 0, 3, 3, 2]]
    assert codec.decode(codec.encode(labels))[0, [7, 2, 5, 0]].tolist() == [0, -3, -6, -8]


def test_ties_are_ordered_by_class_id_and_the_lowest_id_stays_top_1() -> None:
    labels = torch.full((1, 9), NOWHERE).scatter(1, torch.tensor([[7, 2, 5, 0]]), torch.tensor([[3.0, 3.0, 3.0, 1.0]]))
    codec = SparseCodec(SparseConfig(classes=9, domain="logits", k=4, rest="zero", step=1.0, gaps=(0, 3, *[0] * 10), rest_bits=0))
    codes = codec.encode(labels)
    assert codes.tolist() == [[2, 5, 7, 0, 0, 0, 2]]
    assert int(codec.decode(codes).argmax()) == 2 == int(codec.decode(codes).half().argmax())
    assert torch.equal(codec.encode(codec.decode(codes)), codes)


def test_neighbour_lists_are_stored_with_the_codec_and_a_forged_one_is_refused() -> None:
    near = torch.tensor([[1, 2], [0, 2], [0, 1], [4, 0], [3, 5], [4, 3]])
    config = SparseConfig(classes=6, domain="logits", k=3, rest="zero", step=1.0, gaps=(0, 2, *[0] * 10), rest_bits=0, neighbours=2)
    codec = SparseCodec(config, near)
    labels = torch.full((1, 6), NOWHERE).scatter(1, torch.tensor([[4, 3, 1]]), torch.tensor([[5.0, 4.0, 2.0]]))
    assert codec.encode(labels).tolist() == [[4, 0, 3, 1, 2]], (
        "3 is the first neighbour of 4 (rank 0); 1 is the second class outside the list (rank 2 + 1)"
    )
    tensors = codec.decoder_tensors()
    again = SparseCodec.build(config, tensors)
    assert torch.equal(again.decode(codec.encode(labels)), codec.decode(codec.encode(labels)))
    for forged in (bytes([255] * 4 + [15]), bytes(5)):
        with pytest.raises(BadContainer, match="contains a class twice, or one above 5"):
            SparseCodec.build(config, {"neighbours": torch.frombuffer(bytearray(forged), dtype=torch.uint8)})
    with pytest.raises(BadContainer, match="the codec has no tensor 'neighbours'"):
        SparseCodec.build(config, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rest": "mean"}, "rest is 'mean'; it must be zero or uniform"),
        ({"domain": "logits"}, "rest is 'uniform'; it must be zero where labels are logits"),
        ({"step": 0.0}, "step is 0.0; it must be above 0"),
        ({"step": float("nan")}, "step is nan; it must be above 0"),
        ({"gaps": (4, *[0] * 11)}, r"gaps is \[4, 0.*; it must be 12 counts that add up to k - 1 = 3"),
        ({"gaps": (3,)}, r"gaps is \[3\]; it must be 12 counts"),
        ({"rest_bits": 0}, r"rest_bits is 0; it must be 1\.\.12"),
        ({"k": 9}, r"k is 9; it must be 1\.\.8"),
        ({"neighbours": 8}, r"neighbours is 8; it must be 0\.\.7"),
    ],
)
def test_an_invalid_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    good = SparseConfig(classes=8, domain="probs", k=4, rest="uniform", step=0.5, gaps=(3, *[0] * 11), rest_bits=5)
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(good, **change)


def test_the_default_codec_of_labels_with_k_known_entries_is_sparse() -> None:
    labels = sparse_labels("logits", "zero", 5)
    sparse, dense = sample_of(labels, "logits", "zero", 5), sample_of(labels, "logits", "zero", 5)
    dense = dataclasses.replace(dense, support=None)
    assert with_codec(FitConfig(), sparse).codec == "sparse"
    assert with_codec(FitConfig(), dense).codec == "vqae"
    assert with_codec(FitConfig(codec="topk"), sparse).codec == "topk"
    large = dataclasses.replace(sparse, total=100_000)
    budget = with_codec(FitConfig(ratio=20), large)
    assert budget.bits == 31 and (budget.ratio, budget.bytes) == (None, None), "32 bits per label, minus the container's overhead"


def test_a_fit_notes_how_many_classes_its_bits_omit(tmp_path: Path) -> None:
    lpqld(tmp_path / "dump", 8)
    source = vqlabel.open_labels(tmp_path / "dump", classes=CLASSES)
    report = vqlabel.fit(source, FitConfig(bits=24))[1]
    mass = 100 * report["held_out"]["mass_kept"]
    assert 50 < mass < 99
    (note,) = report["notes"]
    assert note.startswith(
        f"{report['config']['k']} of the 8 known classes of a label are stored, which have {mass:.1f} % of the probability"
    )


def test_topk_keeps_all_known_entries_and_refuses_to_drop_shared_mass() -> None:
    labels = sparse_labels("logits", "zero", 9)
    codec = fit_codec(sample_of(labels, "logits", "zero", 9), FitConfig(codec="topk"))
    assert codec.config.k == 9
    with pytest.raises(UsageError, match="topk drops the mass that the other classes of these labels share; use codec sparse"):
        fit_codec(sample_of(sparse_labels("probs", "uniform", 9), "probs", "uniform", 9), FitConfig(codec="topk"))


def test_vqae_refuses_sparse_labels_and_sparse_refuses_dense_ones() -> None:
    sample = sample_of(sparse_labels("logits", "zero", 5), "logits", "zero", 5)
    with pytest.raises(UsageError, match=r"5 logits of each label are known and the other classes have none.* use codec sparse"):
        fit_codec(sample, FitConfig(codec="vqae"))
    with pytest.raises(UsageError, match="codec sparse is for labels with k known entries, and these labels are dense"):
        fit_codec(dataclasses.replace(sample, support=None), FitConfig(codec="sparse"))


def lpqld(folder: Path, k: int) -> NDArray[np.float16]:
    """Write a dump as LPQLD's generator does, and return its labels."""
    labels = sparse_labels("logits", "zero", k)
    folder.mkdir()
    order = {number: list(range(30 * number, 30 * number + 30)) for number in range(LABELS // 30)}
    (folder / "sampler_indices_batch.json").write_text(json.dumps(order))
    for number, part in enumerate(labels.split(30)):
        value, index = part.topk(k, 1)
        items = [torch.rand(30, 4).half(), torch.rand(30) > 0.5, None, None, None, value, index.short()]
        torch.save(items, folder / f"batch_{number}.tar")
    return labels.numpy()


def test_a_dump_of_k_logits_packs_by_default_without_losing_a_class(tmp_path: Path) -> None:
    labels = lpqld(tmp_path / "dump", 5)
    source = vqlabel.open_labels(tmp_path / "dump", classes=CLASSES)
    codec, report = vqlabel.fit(source)
    size = vqlabel.pack(source, tmp_path / "l.vql", codec=codec)["bytes"]
    topk = vqlabel.pack(source, tmp_path / "t.vql", codec=vqlabel.fit(source, FitConfig(codec="topk"))[0])["bytes"]
    assert codec.kind == "sparse" and "notes" not in report and report["held_out"]["top1_agreement"] == 1 and size < topk
    figures = vqlabel.stats(tmp_path / "l.vql", against=source)["distortion"]
    assert figures["top1_agreement"] == figures["mass_kept"] == 1 and max(figures[f"kl_T{t:g}"] for t in MIX) < 0.02
    decoded = vqlabel.open(tmp_path / "l.vql")[:].numpy()
    assert np.array_equal(decoded > NOWHERE, labels > NOWHERE)
    vqlabel.unpack(tmp_path / "l.vql", tmp_path / "back")
    back = vqlabel.open_labels(tmp_path / "back", classes=CLASSES)
    again = np.concatenate([as_dense(batch.labels) for batch in back])
    assert np.array_equal(again > NOWHERE, labels > NOWHERE) and np.array_equal(again.argmax(1), labels.argmax(1))


@pytest.mark.parametrize("fill", [-100.0, -1e4, -65504.0])
def test_an_array_of_k_logits_with_a_fill_value_packs_as_sparse_labels(fill: float, tmp_path: Path) -> None:
    labels = lpqld(tmp_path / "dump", 5)
    labels[labels == NOWHERE] = fill
    np.save(tmp_path / "a.npy", labels)
    codec, report = vqlabel.fit(tmp_path / "a.npy")
    vqlabel.pack(tmp_path / "a.npy", tmp_path / "a.vql", codec=codec)
    figures = vqlabel.stats(tmp_path / "a.vql", against=tmp_path / "a.npy")["distortion"]
    assert codec.kind == "sparse" and report["held_out"]["top1_agreement"] == figures["top1_agreement"] == figures["mass_kept"] == 1
    assert max(figures[f"kl_T{t:g}"] for t in MIX) < 0.02
    vqlabel.pack(tmp_path / "a.npy", tmp_path / "raw.vql", codec=vqlabel.fit(tmp_path / "a.npy", FitConfig(codec="raw"))[0])
    assert np.array_equal(vqlabel.open(tmp_path / "raw.vql")[:].numpy(), labels)


def test_neighbours_are_the_most_frequent_classes_and_then_the_lowest_ids() -> None:
    ids = np.array([[3, 20], [3, 20], [3, 1], [5, 0]])
    table = choose_neighbours(np.tile(ids, (200, 1)), ids, FILLED_ROWS + 30, 10**9)
    length = table.shape[1]
    assert length >= 8
    assert table[3].tolist() == [20, 1, 0, 2, *range(3, length)][:length]  # 3 is no neighbour in the counts, but fills the list
    assert table[20].tolist() == [3, *(c for c in range(length) if c != 3)]
    assert table[5].tolist() == [*range(length)]
    assert (table[[2, FILLED_ROWS, FILLED_ROWS + 29]] == np.arange(length)).all()


def test_small_tails_of_many_classes_are_kept() -> None:
    classes, mass = 100_000, 1e-4  # 1e-9 of each other class
    labels = SparseLabels(
        ids=torch.tensor([[7, 3], [9, 8]]), values=torch.tensor([[0.7, 0.3], [0.9, 0.1]]) * (1 - mass),
        rest=torch.full((2, 1), mass / (classes - 2)), classes=classes,
    )  # fmt: skip
    config = SparseConfig(classes=classes, domain="probs", k=2, rest="uniform", step=0.5, gaps=(0, 0, 0, 1, *[0] * 8), rest_bits=8)
    codec = SparseCodec(config)
    decoded = codec.decode_sparse(codec.encode(labels))
    assert decoded.ids.tolist() == labels.ids.tolist()
    assert torch.allclose(decoded.rest * (classes - 2), torch.tensor(mass), rtol=0.3)
    logits = codec.decode_logits(codec.encode(labels)).as_dense()
    torch.testing.assert_close(logits.softmax(1), decoded.as_dense(), rtol=1e-4, atol=0)  # float32 sums of 100,000 numbers
