"""DistillKit's Parquet: packed rows, missing columns and configurations; the bytes by hand-made examples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from text_dumps import EXACT, LENGTHS, K, V, captured, distillkit_compressed, packed, write_table

from vqlabel.errors import BadLabels, MissingExtra, UsageError
from vqlabel.labels.text.layouts.distillkit_bytes import parse_compression
from vqlabel.labels.text.open import open_text_labels

pytest.importorskip("pyarrow")
RECOMMENDED = {
    "d": 50_000,
    "k": 8,
    "exact_k": 2,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, "sqrt"],
    "residual_bins": [],
    "delta_encoding": False,
}


def encode(values: list[float], dtype: str = "<f4") -> list[int]:
    array = np.array(values, "<f4")
    return list((array.view("<u4") >> 16).astype("<u2").tobytes() if dtype == "bf16" else array.astype(dtype).tobytes())


def decode(config: dict[str, Any], data: list[int]) -> NDArray[np.floating]:
    """The values of one row."""
    stored = parse_compression(config, "c.json")
    assert stored.value_bytes == len(data)
    return stored.logprobs(np.array([data], np.uint8))[0]


def test_the_bytes_of_a_row_are_exact_values_and_a_polynomial_of_the_rank() -> None:
    stored = parse_compression(RECOMMENDED, "c.json")
    assert (stored.id_bits, stored.id_bytes, stored.value_bytes) == (16, 16, 2 * 2 + 3 * 4)
    ranks = np.arange(6)
    values = decode(RECOMMENDED, encode([-0.5, -1.25], "bf16") + encode([-2.0, -0.25, -0.5]))
    np.testing.assert_allclose(values, [-0.5, -1.25, *(-2 - 0.25 * ranks - 0.5 * np.sqrt(ranks))], rtol=1e-6)


def test_ranks_run_from_zero_to_one_if_the_configuration_says_so() -> None:
    values = decode(
        {**RECOMMENDED, "normalize_t": True, "polynomial_terms": [0, 2, "exp"]}, encode([-1, -2], "bf16") + encode([-3, -1, 0.5])
    )
    t = np.linspace(0, 1, 6)
    np.testing.assert_allclose(values[2:], -3 - t**2 + 0.5 * np.exp(t), rtol=1e-6)


def test_residuals_are_centred_integers_times_the_scale_of_their_bin() -> None:
    bins = [
        {"scale_dtype": "float16", "element_bits": 3, "num_elements": 3},
        {"scale_dtype": "float32", "element_bits": 1, "num_elements": 2},
    ]
    config = {**RECOMMENDED, "exact_k": 2, "exact_dtype": "float32", "polynomial_terms": [0], "residual_bins": bins}
    data = encode([-1, -2]) + encode([-4.0]) + encode([0.5], "<f2") + [0b11100001, 0b10000000] + encode([0.25]) + [0b10_000000]
    np.testing.assert_allclose(decode(config, data), [-1, -2, -4 + 1.5, -4 - 2, -4 - 0.5, -4 + 0.25, -4 - 0.25, -4])


def test_with_delta_encoding_values_are_running_sums() -> None:
    config = {**RECOMMENDED, "delta_encoding": True, "k": 4, "exact_k": 4, "exact_dtype": "float32", "polynomial_terms": None}
    np.testing.assert_allclose(decode(config, encode([-0.5, -1, -0.25, -0.125])), [-0.5, -1.5, -1.75, -1.875])
    values = decode({**config, "exact_dtype": "bfloat16"}, encode([-1, -0.00390625, -0.00390625, -0.00390625], "bf16"))
    assert values.tolist() == [-1, -1.0, -1.0078125, -1.015625]  # each sum is rounded to bf16, ties to even


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_type_of_exact_values_is_read(dtype: str) -> None:
    code = {"float16": "<f2", "bfloat16": "bf16", "float32": "<f4", "float64": "<f8"}[dtype]
    config = {**RECOMMENDED, "k": 2, "exact_k": 2, "exact_dtype": dtype, "polynomial_terms": None}
    assert decode(config, encode([-0.5, -1.75], code)).tolist() == [-0.5, -1.75]


@pytest.mark.parametrize(("d", "bits"), [(2, 1), (32_000, 15), (32_768, 15), (32_769, 16), (128_257, 17), (262_145, 19)])
def test_ids_have_as_many_bits_as_the_vocabulary_needs(d: int, bits: int) -> None:
    k = min(d, 5)
    stored = parse_compression({**EXACT, "d": d, "k": k, "exact_k": k}, "c.json")
    ids = np.random.default_rng(0).integers(0, d, (3, k))
    assert stored.id_bits == bits
    assert stored.ids(np.array(packed(ids, bits), np.uint8)).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": None}, r"d is None; it must be 2\.\.16777216, the vocabulary"),
        ({"d": 1 << 40}, r"d is 1099511627776; it must be 2\.\."),
        ({"d": True}, "d is True"),
        ({"k": 1 << 20}, r"k is 1048576; it must be 1\.\.4096"),
        ({"d": 4, "k": 5}, r"k is 5; it must be 1\.\.4"),
        ({"exact_k": 9}, r"exact_k is 9; it must be 0\.\.k \(8\)"),
        ({"exact_dtype": "int8"}, "exact_dtype is int8; it must be one of float16, bfloat16, float32, float64"),
        ({"term_dtype": 4}, "term_dtype is 4"),
        ({"polynomial_terms": ["log"]}, r"polynomial_terms is \['log'\]; it must be a list of powers up to 16, sqrt and exp"),
        ({"polynomial_terms": [99]}, r"polynomial_terms is \[99\]"),
        ({"polynomial_terms": 3}, "polynomial_terms is 3"),
        ({"polynomial_terms": None}, r"k - exact_k = 6 values need polynomial_terms, or residual_bins of at most 6 num_elements"),
        (
            {"residual_bins": [{"scale_dtype": "float16", "element_bits": 8, "num_elements": 7}]},
            "residual_bins of at most 6 num_elements",
        ),
        (
            {"residual_bins": [{"scale_dtype": "float16", "element_bits": 64, "num_elements": 2}]},
            r"element_bits is 64; it must be 1\.\.32",
        ),
        ({"residual_bins": [3]}, r"residual_bins is \[3\]; it must be a list of bins"),
        ({"delta_encoding": "yes"}, "delta_encoding is yes; it must be true or false"),
    ],
    ids=range(16),
)
def test_a_configuration_outside_its_limits_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadLabels, match=rf"^c\.json: .*{message}"):
        parse_compression({**RECOMMENDED, **change}, "c.json")


def test_a_configuration_is_found_inside_that_of_a_training_run(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    dump = distillkit_compressed(tmp_path)
    (tmp_path / "compression_config.json").unlink()
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump({"model": "a", "teacher": {"kind": "dataset", "logprob_compressor": EXACT}}))
    assert open_text_labels(tmp_path, compression=run).lengths.tolist() == list(LENGTHS)
    (tmp_path / "compression_config.yaml").write_text(yaml.safe_dump(EXACT))
    assert open_text_labels(tmp_path).about.vocabulary == V
    run.write_text("a: [")
    with pytest.raises(BadLabels, match=r"run\.yaml: cannot be read"):
        open_text_labels(dump.path, compression=run)


def test_a_missing_or_unreadable_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, config = distillkit_compressed(tmp_path).path, tmp_path / "compression_config.json"
    for text, message in (
        ("[1]", "is no mapping; DistillKit's compression has the fields d, k"),
        ("{", "cannot be read"),
        ("x" * 70_000, "has 70000 bytes"),
    ):
        config.write_text(text)
        with pytest.raises(BadLabels, match=rf"compression_config\.json: {message}"):
            open_text_labels(path)
    config.unlink()
    with pytest.raises(
        UsageError, match=r"compression is not passed, and .* has no compression_config\.yaml; pass the YAML or JSON of the capture"
    ):
        open_text_labels(path)
    with pytest.raises(UsageError, match=r"compression is .*nowhere\.yaml; there is no such file"):
        open_text_labels(path, compression=tmp_path / "nowhere.yaml")
    (tmp_path / "a.yaml").touch()
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"needs pyyaml, which is not installed; run: pip install 'vqlabel\[text\]'"):
        open_text_labels(path, compression=tmp_path / "a.yaml")


def test_the_error_without_pyarrow_has_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = distillkit_compressed(tmp_path).path
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"needs pyarrow, which is not installed; run: pip install 'vqlabel\[text\]'"):
        open_text_labels(path)


def test_a_compression_of_another_vocabulary_or_k_is_refused(tmp_path: Path) -> None:
    path = distillkit_compressed(tmp_path).path
    (tmp_path / "compression_config.json").write_text(json.dumps({**EXACT, "d": 70}))
    with pytest.raises(
        BadLabels, match=r"data_0\.parquet, row 0: rows of 4 and 20 bytes .*; d = 70, k = 5 and the other fields .* need 5 and 20"
    ):
        open_text_labels(path).read(0)
    (tmp_path / "compression_config.json").write_text(json.dumps({**EXACT, "d": V + 5}))
    with pytest.raises(UsageError, match=rf"vocab is {V + 6}; .* records a vocabulary of {V + 5}"):
        open_text_labels(path, vocab=V + 6)
    with pytest.raises(BadLabels, match=r"data_0\.parquet, row 0, row \d: token \d+ is outside 0\.\.29, the vocabulary"):
        open_text_labels(path, vocab=30).read(0)


def test_probabilities_of_a_lossy_approximation_are_divided_by_their_sum_with_a_note(tmp_path: Path) -> None:
    config = {**EXACT, "k": 3, "exact_k": 1, "polynomial_terms": [0]}
    data = encode([float(np.log(0.8))]) + encode([float(np.log(0.4))])
    columns = {"input_ids": [[1, 2]], "bytepacked_indices": [packed(np.array([[4, 7, 1]]), 6)], "compressed_logprobs": [[data]]}
    write_table(tmp_path / "a.parquet", columns)
    (tmp_path / "compression_config.json").write_text(json.dumps(config))
    source = open_text_labels(tmp_path / "a.parquet")
    assert source.notes == [
        f"{tmp_path}/a.parquet: rows whose approximated probabilities sum to more than 1 are divided by their sum"
    ]
    np.testing.assert_allclose(source.read(0).rows.values, [[0.5, 0.25, 0.25]], rtol=1e-6)


def test_the_row_of_a_token_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    columns, tokens, rows = captured()
    columns["input_ids"] = [ids[:-1] or ids for ids in columns["input_ids"]]
    source = open_text_labels(write_table(tmp_path / "a.parquet", columns), vocab=V)
    for at, document in enumerate(source):
        assert document.tokens.tolist() == (tokens[at][:-1] if len(tokens[at]) > 1 else tokens[at]).tolist()
        np.testing.assert_allclose(document.rows.as_dense(), rows[at][:-1], rtol=2e-6)


def test_a_packed_row_is_split_into_its_documents(tmp_path: Path) -> None:
    """Each document was cut to its labels, so that its last label is of a token that is not there."""
    columns, _, rows = captured()
    labels = {name: [*columns[name][0], *columns[name][2], *columns[name][3]] for name in ("token_ids", "top_values")}
    padding = {name: values[-1:] * 2 for name, values in labels.items()}
    packed_row = {name: [values + padding[name]] for name, values in labels.items()}
    mask = [1] * 6 + [2] * 11 + [3] * 4 + [0] * 2
    columns = {"input_ids": [list(range(len(mask)))], "attention_mask": [mask], **packed_row}
    source = open_text_labels(write_table(tmp_path / "a.parquet", columns), vocab=V)
    assert [document.tokens.tolist() for document in source] == [[*range(6)], [*range(6, 17)], [*range(17, 21)]]
    for document, expected in zip(source, (rows[0], rows[2], rows[3]), strict=True):
        np.testing.assert_allclose(document.rows.as_dense(), expected[:-1], rtol=2e-6)


def change(name: str, edit: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda columns: {**columns, name: edit(columns[name])}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: {"input_ids": c["input_ids"]}, "has the columns input_ids; labels need input_ids and bytepacked_indices and compressed_logprobs, or input_ids and token_ids"),
        (lambda c: {name: c[name] for name in ("token_ids", "top_values")}, "has the columns token_ids, top_values; labels need input_ids"),
        (lambda c: {**c, "packed_indices": c["token_ids"], "exact_values": c["token_ids"], "coeffs": c["token_ids"]}, "holds labels of DistillKit's legacy compression"),
        (change("input_ids", lambda v: [[0] * 3, *v[1:]]), "row 0: token_ids has 6 rows and top_values 6 for 3 tokens; L tokens have L - 1 rows, or L"),
        (change("top_values", lambda v: [v[0][:-1], *v[1:]]), "row 0: token_ids has 6 rows and top_values 5 for 7 tokens"),
        (change("top_values", lambda v: [[row[:-1] for row in v[0]], *v[1:]]), r"row 0: rows of 5 and 4 numbers .*; the first row has 5 and 5"),
        (change("top_values", lambda v: [[v[0][0][:-1], *v[0][1:]], *v[1:]]), "row 0: column 'top_values' has lists of 4 to 5 numbers; all must have as many"),
        (change("top_values", lambda v: [[[None, *row[1:]] for row in v[0]], *v[1:]]), "row 0: column 'top_values' has a null"),
        (change("top_values", lambda v: [None, *v[1:]]), "row 0: column 'top_values' has a null"),
        (change("top_values", lambda v: [[[1.5] * 5 for row in part] for part in v]), "row 0, row 0: its 5 probabilities sum to 22.41, more than 1; are the values logits"),
        (change("top_values", lambda v: [[[float("nan")] * 5 for row in part] for part in v]), "row 0, row 0: token .* has the log-probability nan"),
        (change("token_ids", lambda v: [[[3] * 5 for row in part] for part in v]), "row 0, row 0: has token 3 twice; its tokens must be different ones"),
        (change("token_ids", lambda v: [[[V, *row[1:]] for row in part] for part in v]), rf"row 0, row 0: token {V} is outside 0\.\.{V - 1}, the vocabulary"),
        (change("token_ids", lambda v: [[[float(i) for i in row] for row in part] for part in v]), r"row 0: rows of 5 and 5 numbers \(float64, float64\)"),
        (change("input_ids", lambda v: ["a" for _ in v]), "row 0: column 'input_ids' is string; it must hold a list for each row"),
        (change("input_ids", lambda v: [["a"] for _ in v]), "row 0: column 'input_ids' holds string; it must hold numbers"),
        (change("input_ids", lambda v: [[0.5] * len(ids) for ids in v]), "row 0: column 'input_ids' holds float64; it must hold lists of integers"),
        (lambda c: {**c, "attention_mask": [[1]] * 6}, "row 0: 1 numbers of attention_mask for 7 tokens"),
    ],
    ids=range(18),
)  # fmt: skip
def test_a_table_that_holds_no_such_labels_is_refused(edit: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", edit(captured()[0]))
    with pytest.raises(BadLabels, match=rf"a\.parquet(, |: ){message}"):
        list(open_text_labels(path, vocab=V))


def test_a_compression_for_raw_values_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", captured()[0])
    with pytest.raises(UsageError, match="holds raw values, token_ids and top_values: leave it out"):
        open_text_labels(path, vocab=V, compression=tmp_path / "a.json")
    with pytest.raises(UsageError, match="vocab is None; it must be passed"):
        open_text_labels(path)


@pytest.mark.parametrize("file", ["a.parquet", "a.arrow"])
def test_a_damaged_file_is_refused_with_its_name(file: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / file, captured()[0])
    data = path.read_bytes()
    for size in range(0, len(data) - 9, max(1, len(data) // 12)):
        path.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=rf"{file}"):
            list(open_text_labels(path, vocab=V))


def test_one_row_is_decoded_at_a_time(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", captured(K)[0], rows=4)
    source = open_text_labels(path, vocab=V)
    table = source._places[0].table  # type: ignore[attr-defined]
    source.read(5)
    assert table._next == {"input_ids": 6, "token_ids": 6, "top_values": 6}
    source.read(4)
    source.read(5)
    assert table._next["top_values"] == 6
    source.read(1)
    assert table._next["top_values"] == 2


def test_only_one_file_is_open_at_a_time(tmp_path: Path) -> None:
    source = open_text_labels(distillkit_compressed(tmp_path).path)
    first, second = (source._places[at].table for at in (0, 5))  # type: ignore[attr-defined]
    for index in (0, 5, 0, 4):
        source.read(index)
        assert bool(first._pieces) != bool(second._pieces)
