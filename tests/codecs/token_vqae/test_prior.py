"""The prior reads the tokens of a document that lie in its window, and nothing else."""

import numpy as np
import pytest
import torch

from tests.text_corpus import random_codec, small_split
from vqlabel.codecs.token_vqae.config import TokenPriorConfig
from vqlabel.labels.text.documents import Documents

REACH = 4  # layers x window of `small_config`


def predicted(documents: Documents, **changes: object) -> torch.Tensor:
    return random_codec(**changes).decoder.predict(documents)


def test_a_document_has_the_same_latents_alone_and_between_others() -> None:
    documents = small_split().documents
    together = predicted(documents)
    for index in range(0, len(documents), 7):
        alone, rows = documents.take(np.array([index]))
        torch.testing.assert_close(predicted(alone), together[torch.from_numpy(rows)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", [0, 9, 19])
def test_a_token_changes_the_rows_that_have_it_in_their_window(changed: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 60, 20)
    other = tokens.copy()
    other[changed] = (other[changed] + 1) % 60
    difference = (predicted(Documents.of([tokens])) - predicted(Documents.of([other]))).abs().amax(1)
    row = np.arange(19)
    near = (row + 1 + REACH >= changed) & (row - REACH <= changed)  # row t attends from tokens t and t + 1
    assert (difference[torch.from_numpy(~near)] < 1e-6).all()
    assert difference[torch.from_numpy((row == changed) | (row + 1 == changed))].min() > 1e-4


def test_without_the_future_a_row_depends_on_no_later_token() -> None:
    prior = TokenPriorConfig(width=16, layers=2, heads=2, window=2, future=False)
    tokens = np.random.default_rng(0).integers(0, 60, 20)
    other = tokens.copy()
    other[10:] = (other[10:] + 1) % 60
    before, after = (predicted(Documents.of([one]), prior=prior) for one in (tokens, other))
    torch.testing.assert_close(before[:10], after[:10])
    assert (before[10] - after[10]).abs().max() > 1e-4
