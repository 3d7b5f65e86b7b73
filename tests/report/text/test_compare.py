"""`compare_text`: figures and bits by independent formulas, students, and refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import vqlabel
from tests.text_corpus import small_head, small_split, write_head, write_hidden_states, write_logits
from vqlabel.codecs.hidden_labels import HiddenLabels
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.sample import TextSplit
from vqlabel.config import TextFitConfig
from vqlabel.errors import UsageError
from vqlabel.labels.text.documents import Documents
from vqlabel.progress import silent
from vqlabel.report.text.compare import TextCompareConfig, compare_text
from vqlabel.report.text.methods import METHODS, method_of
from vqlabel.report.text.peers import text_peers
from vqlabel.report.text.student_labels import StudentCorpus
from vqlabel.workflows.text.open import open_text_dump
from vqlabel.workflows.text.sample import read_text_sample

SMALL = TextFitConfig(slots=2, codebook_size=8, ids=2, width=16, window=2, epochs=8)
RATES = (4, 8, 12)
Fitted = tuple[TokenVqae, dict, TextSplit]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dump and its head."""
    folder = tmp_path_factory.mktemp("compare")
    return write_hidden_states(folder / "dump", small_split(60)), write_head(folder)


@pytest.fixture(scope="module")
def comparison(dump: tuple[Path, Path]) -> dict:
    config = TextCompareConfig(bits=RATES, fit=SMALL, teacher_bytes=5000, students=True, passes=1)
    return compare_text(dump[0], config, head=dump[1])


@pytest.fixture(scope="module")
def fitted(dump: tuple[Path, Path]) -> Fitted:
    """The codec of the same fit, its report, and the documents that it did not see."""
    codec, report = vqlabel.fit_text(dump[0], TextFitConfig(**{**SMALL.to_dict(), "bits": 8}), head=dump[1])
    opened = open_text_dump(dump[0], dump[1])
    return codec, report, read_text_sample(opened, SMALL.labels, 0, silent).held_out


def points(comparison: dict, method: str) -> list[dict]:
    return [point for point in comparison["points"] if point["method"] == method]


def test_one_fit_gives_the_curve_of_the_codec(comparison: dict) -> None:
    curve = points(comparison, "token_vqae")
    assert [point["code_bits"] for point in curve] == [pytest.approx(rate, rel=0.25) for rate in RATES]
    assert [point["kl"] for point in curve] == sorted((point["kl"] for point in curve), reverse=True)
    assert all(0 <= point["ece"] < 0.3 and point["kl"] == point["kl_stored"] for point in curve)
    assert len({point["fixed_bytes"] for point in curve}) == 1


def test_the_codec_s_figures_are_those_of_a_file_of_the_held_out_documents(fitted: Fitted, comparison: dict) -> None:
    """The same fit at the same rate gives the labels of `pack_text`; a dense formula gives their figures."""
    (codec, report, held_out), point = fitted, points(comparison, "token_vqae")[1]
    assert report["held_out"]["kl"] == pytest.approx(point["kl"], rel=1e-4)
    assert report["held_out"]["bits"] == pytest.approx(point["code_bits"])
    q = codec.decode(codec.encode(held_out.labels, held_out.documents), held_out.documents).probs().double()
    p = held_out.labels.probs().double()
    assert point["squared_error"] == pytest.approx(float((p - q).square().sum(1).mean()), rel=1e-4)
    assert point["top1_agreement"] == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))


def test_all_in_bits_add_fixed_parts_and_the_table_of_documents(fitted: Fitted, comparison: dict) -> None:
    point, split = points(comparison, "token_vqae")[1], small_split(60)
    tensors = fitted[0].decoder_tensors()
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    table = 8 * 20 * int((split.documents.lengths > 1).sum()) / len(split.labels)  # 16 bytes of hash, 4 of a number
    growing = point["code_bits"] + table
    out = sum(size for name, size in sizes.items() if name.startswith("decoder.out"))
    for parts, fixed in ((point, sum(sizes.values())), (point["referenced"], sum(sizes.values()) - out)):
        assert parts["fixed_bytes"] == fixed
        assert parts["all_in_bits"] == pytest.approx(growing + 8 * fixed / len(split.labels))
        assert parts["all_in_at"] == pytest.approx({"10000000": growing + 8 * fixed / 1e7, "1000000000": growing + 8 * fixed / 1e9})
    assert out >= 60 * 8
    assert comparison["teacher"]["all_in_bits"] == pytest.approx(8 * 5000 / len(split.labels))
    assert comparison["teacher"]["all_in_at"]["10000000"] == pytest.approx(8 * 5000 / 1e7)


def test_peers_have_the_bits_of_their_formats(comparison: dict) -> None:
    ids, by = 6, {(point["method"], point["setting"]): point for point in comparison["points"]}  # 6 bits: 60 tokens
    assert by["topk", "k = 16"]["code_bits"] == 16 * (ids + 16)
    assert by["topk-zero", "k = 50"]["code_bits"] == 50 * (ids + 16)
    assert by["topk-zero", "k = 50"]["kl"] is None
    assert by["distillkit", "budget"]["code_bits"] == 50 * ids + 16 + 3 * 32
    assert by["logits", ""]["code_bits"] == 16 * 60
    assert by["logits", ""]["kl"] < 1e-5
    fp8 = by["fp8-hidden", ""]
    assert (fp8["code_bits"], fp8["fixed_bytes"], fp8["referenced"]["fixed_bytes"]) == (8 * 8 + 16, 2 * 60 * 8, 0)
    few, many = (by["sampling", f"{draws} draws"] for draws in (8, 50))
    assert 24 < few["code_bits"] < 8 * 24 and few["code_bits"] < many["code_bits"]
    assert ("topk", "k = 128") not in by


def test_entropy_coded_draws_cost_what_our_prior_says(fitted: Fitted, comparison: dict) -> None:
    """The bits of the multiset of draws under the prior of the fitted codec, by the formula for one label at a time."""
    codec, _, held_out = fitted
    assert codec.config.prior is not None
    fields = torch.zeros(len(held_out.labels), len(codec.config.widths), dtype=torch.int32)  # no codes, no ids
    q = codec.decode(fields, held_out.documents).probs().double()
    draws = torch.multinomial(held_out.labels.probs(), 8, replacement=True, generator=torch.Generator().manual_seed(0))
    bits = 0.0
    for row, own in zip(q, draws, strict=True):
        counts = torch.bincount(own, minlength=60).double()
        bits -= float((counts * row.log2()).sum()) + math.log2(math.factorial(8))
        bits += float(torch.lgamma(counts + 1).sum()) / math.log(2)
    plain, coded = (
        next(point for point in points(comparison, method) if point["setting"] == "8 draws")
        for method in ("sampling", "sampling-coded")
    )
    assert coded["code_bits"] == pytest.approx(bits / len(q), rel=1e-3)
    assert coded["kl_stored"] == plain["kl_stored"]
    assert coded["fixed_bytes"] > coded["referenced"]["fixed_bytes"] > 0


def test_rows_are_sorted_and_every_point_has_a_student(comparison: dict) -> None:
    bits = [point["code_bits"] for point in comparison["points"]]
    assert bits == sorted(bits)
    hard, dense = comparison["student"]["hard"], comparison["student"]["dense"]
    for point in comparison["points"]:
        own = point["student"]
        expected = (hard["kl"] - own["kl"]) / (hard["kl"] - dense["kl"])
        assert own["share"] == (pytest.approx(expected) if hard["kl"] > dense["kl"] else None)
    nearly = points(comparison, "logits")[0]["student"]
    assert nearly["kl"] == pytest.approx(dense["kl"], rel=1e-3)
    shared = [
        next(p for p in points(comparison, m) if p["setting"] == "16 draws")["student"] for m in ("sampling", "sampling-coded")
    ]
    assert shared[0] == shared[1]
    assert list(comparison["methods"]) == list(METHODS)


def test_pieces_of_documents_keep_the_order_of_labels() -> None:
    lengths = [1, 2, 3, 4, 7, 8, 9]
    texts = [np.arange(10 * i, 10 * i + length) for i, length in enumerate(lengths)]
    whole = Documents.of(texts)
    corpus = StudentCorpus(whole, HiddenLabels(hidden=torch.zeros(whole.rows, 8), head=small_head()))
    cut = corpus.cut(4).documents
    assert cut.lengths.tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 2, 4, 4, 3]
    assert np.array_equal(cut.next_tokens, whole.next_tokens)


def test_methods_of_a_dump_of_logits_have_no_reference(tmp_path: Path) -> None:
    dump = write_logits(tmp_path / "logits", small_split(30))
    config = TextCompareConfig(bits=(8,), methods=["token_vqae", "topk"], fit=SMALL)
    result = compare_text(dump, config)
    assert {point["method"]: point["referenced"] is None for point in result["points"]} == {"token_vqae": True, "topk": False}
    assert "logits are read as hidden states" in result["notes"][0]
    with pytest.raises(UsageError, match=r"methods is 'fp8-hidden'; .*logits holds logits, not hidden states: leave it out"):
        compare_text(dump, TextCompareConfig(methods=["fp8-hidden"]))


def test_every_peer_belongs_to_a_method() -> None:
    assert {method_of(name) for name in text_peers(1000, small_head())} == set(METHODS) - {"token_vqae", "sampling-coded"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": ()}, r"bits is \[\]; it must name at least one rate"),
        ({"bits": (5000,)}, r"bits is 5000; it must be 0..4096 code bits per label"),
        ({"methods": ["vqae"]}, r"methods is 'vqae'; it must be one of token_vqae, topk,"),
        ({"methods": []}, r"methods is \[\]; it must be some of token_vqae"),
        ({"passes": 0}, "passes is 0; it must be at least 1"),
        ({"teacher_bytes": 0}, "teacher_bytes is 0; it must be at least 1 byte"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TextCompareConfig(**values)
