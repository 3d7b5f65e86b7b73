"""References follow their tokens through the collators of Hugging Face: padded on either side, or joined to one row."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.text.conftest import TextFile
from vqlabel.errors import UsageError
from vqlabel.training.text.collator import LabelCollator

Batch = dict[str, Tensor]
EXAMPLES = [
    {"input_ids": [5, 6, 7], "vqlabel": [10, 11, -1]},
    {"input_ids": [8], "vqlabel": [-1]},
    {"input_ids": [9, 0, 5, 0, 0], "vqlabel": [20, 21, 22, 23, -1]},
]


def padded(side: str, width: int = 6, with_mask: bool = True) -> Callable[[list[dict[str, Any]]], Batch]:
    """A collator that pads with token 0, which documents have, too."""

    def collate(examples: list[dict[str, Any]]) -> Batch:
        assert all("vqlabel" not in example for example in examples)
        ids, mask = torch.zeros(len(examples), width, dtype=torch.int64), torch.zeros(len(examples), width, dtype=torch.int64)
        for row, example in enumerate(examples):
            tokens = torch.as_tensor(example["input_ids"])
            place = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
            ids[row, place], mask[row, place] = tokens, torch.as_tensor(example.get("attention_mask", [1] * len(tokens)))
        return {"input_ids": ids, **({"attention_mask": mask} if with_mask else {})}

    return collate


def joined(examples: list[dict[str, Any]]) -> Batch:
    """As padding-free collators return it, to a multiple of 4."""
    tokens = [token for example in examples for token in example["input_ids"]]
    return {"input_ids": torch.tensor([tokens + [0] * (-len(tokens) % 4)])}


def test_references_are_padded_on_the_side_that_the_base_collator_pads() -> None:
    right = LabelCollator(padded("right"))(EXAMPLES)
    assert right["vqlabel"].tolist() == [[10, 11, -1, -1, -1, -1], [-1] * 6, [20, 21, 22, 23, -1, -1]]
    left = LabelCollator(padded("left"))(EXAMPLES)
    assert left["vqlabel"].tolist() == [[-1, -1, -1, 10, 11, -1], [-1] * 6, [-1, 20, 21, 22, 23, -1]]
    assert right["vqlabel"].dtype == torch.int64 and list(right) == ["input_ids", "attention_mask", "vqlabel"]


def test_a_batch_without_a_mask_is_padded_on_the_right_or_not_at_all() -> None:
    batch = LabelCollator(padded("right", with_mask=False))(EXAMPLES)
    assert batch["vqlabel"].tolist() == [[10, 11, -1, -1, -1, -1], [-1] * 6, [20, 21, 22, 23, -1, -1]]
    whole = LabelCollator(padded("right", 5, with_mask=False))(EXAMPLES[2:])
    assert whole["vqlabel"].tolist() == [[20, 21, 22, 23, -1]]


def test_references_of_joined_examples_are_one_row() -> None:
    batch = LabelCollator(joined)(EXAMPLES)
    assert batch["vqlabel"].tolist() == [[10, 11, -1, -1, 20, 21, 22, 23, -1, -1, -1, -1]]


def test_padding_within_the_examples_keeps_its_place() -> None:
    examples = [{"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "vqlabel": [-1, 10, -1]}, EXAMPLES[0]]
    assert LabelCollator(padded("right", 4))(examples)["vqlabel"].tolist() == [[-1, 10, -1, -1], [10, 11, -1, -1]]


def test_examples_of_tensors_are_collated() -> None:
    examples = [{name: torch.tensor(values) for name, values in example.items()} for example in EXAMPLES]
    assert LabelCollator(padded("right"))(examples)["vqlabel"][0].tolist() == [10, 11, -1, -1, -1, -1]


def test_examples_without_the_column_are_left_to_the_base_collator() -> None:
    batch = LabelCollator(padded("right"))([{"input_ids": [1, 2]}])
    assert list(batch) == ["input_ids", "attention_mask"]


def test_labels_of_a_padded_batch_are_those_of_its_documents(file: TextFile) -> None:
    labels = file.open()
    examples = [{"input_ids": tokens, **labels.attach({"input_ids": tokens})} for tokens in file.documents[1:5]]
    for side in ("left", "right"):
        batch = labels.collator(padded(side, 24))(examples)
        found = labels.at(batch["vqlabel"], batch["input_ids"])
        torch.testing.assert_close(found.logits(slice(None)), torch.cat(file.logits[1:5]), rtol=1e-4, atol=1e-4)


def test_some_examples_without_the_column_are_refused() -> None:
    with pytest.raises(UsageError, match=r"1 of the 2 examples of a batch have the column vqlabel; map labels\.attach over all"):
        LabelCollator(padded("right"))([EXAMPLES[0], {"input_ids": [1]}])


def test_an_example_that_was_shortened_after_attach_is_refused() -> None:
    message = r"an example has 2 tokens in input_ids and 3 references in vqlabel: .* such as max_length of TRL's SFTConfig; cut all columns alike"
    with pytest.raises(UsageError, match=message):
        LabelCollator(padded("right"))([{"input_ids": [5, 6], "vqlabel": [10, 11, -1]}])


def changed(examples: list[dict[str, Any]]) -> Batch:
    batch = padded("right")(examples)
    batch["input_ids"][2, 1] = 3
    return batch


def truncated(examples: list[dict[str, Any]]) -> Batch:
    return {name: values[:, :4] for name, values in padded("right")(examples).items()}


@pytest.mark.parametrize(
    ("base", "counts"),
    [
        (changed, r"\[3, 6\] of 9 tokens of examples with 9"),
        (truncated, r"\[3, 4\] of 8 tokens of examples with 9"),
        (padded("left", with_mask=False), r"\[3, 6\] of 9 tokens of examples with 9"),
        (lambda examples: {"input_ids": torch.zeros(2, 6)}, r"\[2, 6\] of 0 tokens of examples with 9"),
    ],
)
def test_a_batch_of_other_tokens_is_refused(base: Callable[[list[dict[str, Any]]], Batch], counts: str) -> None:
    with pytest.raises(
        UsageError, match=rf"the collator function made a batch {counts}, or changed them; .* return attention_mask if"
    ):
        LabelCollator(base)(EXAMPLES)
