"""Responses of vLLM with prompt_logprobs: which k, the order of ties, and lines that are refused with their number."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_dumps import K, V, responses, write_lines

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels.text.open import open_text_labels

Line = dict[str, Any]


def entry(logprob: float, rank: Any) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": None}


def line(*rows: dict[int, dict[str, Any]], tokens: list[int]) -> Line:
    return {"prompt_token_ids": tokens, "prompt_logprobs": [None, *({str(token): e for token, e in row.items()} for row in rows)]}


def test_two_tied_tokens_keep_their_ranks_whatever_their_order_in_the_line(tmp_path: Path) -> None:
    tied = {9: entry(-3.0, 4), 7: entry(-1.2, 2), 2: entry(-1.2, 1), 5: entry(-1.2, 3)}
    rows = open_text_labels(write_lines(tmp_path / "a.jsonl", [line(tied, tokens=[1, 9])]), vocab=V).read(0).rows
    assert rows.ids.tolist() == [[2, 7, 5]]
    assert (rows.values == np.float32(np.exp(-1.2))).all()


@pytest.mark.parametrize("rank", [4, 3, 9], ids=["k + 1", "a tie with the k-th", "its true rank"])
def test_the_token_of_the_text_is_dropped_if_it_is_not_among_the_likeliest(rank: int, tmp_path: Path) -> None:
    among = {2: entry(-1.0, 1), 7: entry(-1.5, 2), 5: entry(-2.0, 3)}
    lines = [line(among, {9: entry(-4.0, rank), **among}, tokens=[1, 2, 9])]
    source = open_text_labels(write_lines(tmp_path / "a.jsonl", lines), vocab=V)
    assert (source.about.width, source.about.details) == (3, {"k": 3, "rest": "uniform"})
    assert source.read(0).rows.ids.tolist() == [[2, 7, 5]] * 2


def test_the_rest_is_shared_by_the_other_tokens_or_zero(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line({2: entry(np.log(0.5), 1), 3: entry(np.log(0.2), 2)}, tokens=[1, 2])])
    rows = open_text_labels(path, vocab=8).read(0).rows
    np.testing.assert_allclose(rows.rest, [[0.3 / 6]], rtol=1e-6)
    rows = open_text_labels(path, vocab=8, rest="zero").read(0).rows
    assert (rows.rest.tolist(), rows.values.round(6).tolist()) == ([[0.0]], [[0.5, np.float32(0.2)]])
    with pytest.raises(UsageError, match=r"rest is 'equal'; it must be one of uniform, zero"):
        open_text_labels(path, vocab=8, rest="equal")


def test_fewer_tokens_of_a_row_can_be_read_and_more_are_refused(tmp_path: Path) -> None:
    lines, tokens, _ = responses()
    path = write_lines(tmp_path / "a.jsonl", lines)
    few, all_of_them = (open_text_labels(path, vocab=V, k=k).read(0).rows for k in (2, K))
    assert few.ids.tolist() == all_of_them.ids[:, :2].tolist()
    np.testing.assert_allclose(few.values.sum(1) + (V - 2) * few.rest[:, 0], 1, rtol=1e-6)
    with pytest.raises(UsageError, match=rf"k is {K + 1}; it must be 1\.\.{K}: .*a\.jsonl stores {K} tokens of a row"):
        open_text_labels(path, vocab=V, k=K + 1)
    assert len(tokens[0]) == len(few) + 1


def test_a_log_probability_of_minus_infinity_is_a_probability_of_zero(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line({2: entry(0.0, 1), 3: entry(-9999.0, 2)}, tokens=[1, 2])])
    rows = open_text_labels(path, vocab=8).read(0).rows
    assert (rows.values.tolist(), rows.rest.tolist()) == ([[1.0, 0.0]], [[0.0]])


def test_the_vocabulary_must_be_passed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", responses()[0])
    with pytest.raises(
        UsageError, match=r"vocab is None; it must be passed: .*a\.jsonl \(prompt_logprobs\) does not record how many tokens"
    ):
        open_text_labels(path)
    with pytest.raises(BadLabels, match=r"line 1, row \d: token \d+ is outside 0\.\.9, the vocabulary: pass that of the teacher"):
        open_text_labels(path, vocab=10).read(0)


def broken(change: Callable[[Line], Any]) -> list[Any]:
    """The responses, of which the third line is changed."""
    lines = responses()[0]
    lines[2] = change(copy.deepcopy(lines[2])) or lines[2]
    return lines


def rows_of(line: Line) -> list[dict[str, Any]]:
    return line["prompt_logprobs"]


def edit(row: int, change: Callable[[dict[str, Any], str], Any]) -> Callable[[Line], Line]:
    """Change the entries of a row, given the next token of the text."""

    def changed(line: Line) -> Line:
        change(rows_of(line)[row + 1], str(line["prompt_token_ids"][row + 1]))
        return line

    return changed


def fewer(entries: dict[str, Any], gold: str) -> None:
    """As for a request of two log-probabilities less."""
    kept = {token: e for token, e in entries.items() if e["rank"] <= K - 2 or token == gold}
    entries.clear()
    entries.update(kept)


def without_one(entries: dict[str, Any], gold: str) -> None:
    del entries[next(token for token, e in entries.items() if e["rank"] == 2 and token != gold)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: json.dumps(line)[:-40], r"is not JSON \(.*\); the file is truncated or damaged"),
        (lambda line: "[1, 2]", "has no prompt_token_ids and prompt_logprobs, at its top or in its only choice; ask vLLM for them"),
        (lambda line: {"prompt_logprobs": rows_of(line)}, "has no prompt_token_ids and prompt_logprobs"),
        (lambda line: {"choices": [line, line]}, "has no prompt_token_ids and prompt_logprobs, at its top or in its only choice"),
        (lambda line: {**line, "prompt_logprobs": None}, "prompt_token_ids must be a list of integers, and prompt_logprobs a list"),
        (lambda line: {**line, "prompt_token_ids": ["a"]}, "prompt_token_ids must be a list of integers"),
        (
            lambda line: {**line, "prompt_logprobs": rows_of(line)[:-2]},
            "10 entries of prompt_logprobs for 12 tokens; there must be one for each, null",
        ),
        (
            lambda line: {**line, "prompt_logprobs": [None] * 12},
            "row 0: is None; it must be an object of token ids, each with its rank and logprob",
        ),
        (edit(3, lambda e, gold: e.update({gold: -0.5})), "row 3: is .*; it must be an object of token ids"),
        (edit(3, lambda e, gold: e[gold].update(rank=None)), "row 3: is .*; it must be an object of token ids"),
        (edit(3, lambda e, gold: e.update({"1e1": e[gold]})), "row 3: is .*; it must be an object of token ids"),
        (
            edit(3, lambda e, gold: e.pop(gold)),
            r"row 3: has no entry for the next token of the text, \d+; it is a row of another token or text",
        ),
        (edit(3, without_one), r"row 3: has the ranks \[1, 3, 4, .*\]; the k likeliest tokens have the ranks 1 to k"),
        (
            edit(3, fewer),
            "row 3: has the 3 likeliest tokens, but rows before have 5; all requests of a dump must ask for the same number",
        ),
    ],
    ids=range(14),
)
def test_a_broken_line_is_refused_with_its_number(change: Callable[[Line], Any], message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", broken(change))
    with pytest.raises(BadLabels, match=rf"a\.jsonl, line 3(, |: ){message}"):
        open_text_labels(path, vocab=V)


def test_a_dump_without_likeliest_tokens_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line({2: entry(-4.0, 9)}, tokens=[1, 2])])
    with pytest.raises(
        BadLabels, match=r"line 1, row 0: has only the token of the text; request the k likeliest with prompt_logprobs = k"
    ):
        open_text_labels(path, vocab=V)


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        ((0.1, 0.1), "line 1, row 0: its 2 probabilities sum to 2.21, more than 1; are the values logits"),
        ((9000.0, 0.0), "line 1, row 0: its 2 probabilities sum to inf, more than 1"),
        ((float("nan"), -1.0), "line 1, row 0: token 2 has the log-probability nan; label this document again"),
        ((float("inf"), -1.0), "line 1, row 0: token 2 has the log-probability inf"),
    ],
    ids=str,
)
def test_values_that_are_no_log_probabilities_are_refused(logprobs: tuple[float, float], message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line({2: entry(logprobs[0], 1), 3: entry(logprobs[1], 2)}, tokens=[1, 2])])
    with pytest.raises(BadLabels, match=message):
        open_text_labels(path, vocab=V).read(0)


def test_rounded_probabilities_above_one_are_divided_by_their_sum(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line({2: entry(np.log(0.75), 1), 3: entry(np.log(0.26), 2)}, tokens=[1, 2])])
    rows = open_text_labels(path, vocab=V).read(0).rows
    np.testing.assert_allclose(rows.values, [[0.75 / 1.01, 0.26 / 1.01]], rtol=1e-6)
    assert rows.rest == 0


def test_files_of_a_folder_are_read_in_numeric_order(tmp_path: Path) -> None:
    lines, tokens, _ = responses()
    for at, number in enumerate((2, 9, 10)):
        write_lines(tmp_path / f"part-{number}.jsonl", ["", *lines[at * 2 : at * 2 + 2]])
    assert [document.tokens.tolist() for document in open_text_labels(tmp_path, vocab=V)] == [ids.tolist() for ids in tokens]
