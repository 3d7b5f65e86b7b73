"""Codes and ids of documents -> labels: what encoding claims is what decoding gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.text_corpus import random_codec, small_head, small_split
from vqlabel.codecs.token_vqae.choose import prefixes
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.errors import BadContainer, UsageError

VARIANTS = {
    "embedded": {}, "referenced": {"head": "referenced"}, "of fewer directions": {"latent": 5}, "of fewer directions and referenced": {"latent": 5, "head": "referenced"},
    "without codes": {"slots": 0}, "without ids": {"ids": 0}, "without prior": {"prior": None}, "6 bits": {"weight_bits": 6},
}  # fmt: skip


def divergence(codec: TokenVqae, fields: torch.Tensor) -> torch.Tensor:
    split = small_split()
    p, log_q = split.labels.probs(), codec.decode(fields, split.documents).logits().log_softmax(1)
    return (torch.special.xlogy(p, p) - p * log_q).sum(1)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_decoded_labels_have_the_kl_that_their_choice_claims(changes: dict[str, object]) -> None:
    codec, split = random_codec(**changes), small_split()
    choices = codec.choices(split.labels, split.documents)
    for price in (0.0, 0.02, 0.2):
        fields = choices.stored(codec.config, price)
        claimed = choices.kl.flatten(1).gather(1, choices.cheapest(codec.config, price)[:, None])[:, 0]
        torch.testing.assert_close(divergence(codec, fields), claimed.float(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_codec_built_from_its_tensors_decodes_the_same(changes: dict[str, object]) -> None:
    codec, split = random_codec(**changes, price=0.01), small_split()
    fields = codec.encode(split.labels, split.documents)
    built = TokenVqae.build(codec.config, codec.decoder_tensors())
    if codec.config.head == "referenced":
        assert "decoder.out" not in codec.decoder_tensors()
        built.attach(small_head())
    torch.testing.assert_close(built.decode(fields, split.documents).logits(), codec.decode(fields, split.documents).logits())
    assert torch.equal(built.encode(split.labels, split.documents), fields)


def test_a_higher_price_gives_fewer_bits_and_more_kl() -> None:
    codec, split = random_codec(), small_split()
    choices = codec.choices(split.labels, split.documents)
    bits, kl = [], []
    for price in (0.0, 0.01, 0.1, 1.0, 100.0):
        pick = choices.cheapest(codec.config, price)
        bits.append(float(choices.bits(codec.config).flatten()[pick].double().mean()))
        kl.append(float(choices.kl.flatten(1).gather(1, pick[:, None]).mean()))
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] == 0
    assert kl == sorted(kl)


def test_every_label_has_one_of_the_numbers_of_codes_that_are_tried() -> None:
    assert prefixes(8) == [0, 1, 2, 4, 6, 8]
    assert prefixes(3) == [0, 1, 2, 3]
    assert prefixes(0) == [0]


def test_a_document_of_one_token_has_no_labels() -> None:
    codec, split = random_codec(price=0.01), small_split()
    short = np.flatnonzero(split.documents.lengths == 1)
    documents, rows = split.documents.take(short)
    assert len(short)
    assert not len(rows)
    assert len(codec.decode(torch.zeros(0, len(codec.config.widths), dtype=torch.int32), documents)) == 0


def test_hidden_states_are_those_whose_logits_the_decoder_gives() -> None:
    codec, split = random_codec(latent=5, ids=0), small_split()
    head, decoder = small_head(), codec.decoder
    decoder.bias.copy_(head.weight @ decoder.center)
    decoder.out.data = decoder.projection @ head.weight.T
    decoded = codec.decode(codec.encode(split.labels, split.documents), split.documents)
    torch.testing.assert_close(head.logits(decoder.hidden(decoded.latent)), decoded.logits(), atol=1e-4, rtol=1e-4)


def test_a_codec_without_its_head_refuses_to_decode() -> None:
    codec, split = random_codec(head="referenced"), small_split()
    built = TokenVqae.build(codec.config, codec.decoder_tensors())
    with pytest.raises(UsageError, match="names its output head and does not contain it"):
        built.encode(split.labels, split.documents)


def test_a_head_of_another_size_is_refused() -> None:
    codec = random_codec(head="referenced")
    with pytest.raises(UsageError, match=r"the head is \[60, 7\]; the codec was fitted for \[60, 8\]"):
        codec.attach(replace(small_head(), weight=torch.zeros(60, 7)))


def test_labels_and_documents_of_other_lengths_are_refused() -> None:
    codec, split = random_codec(), small_split()
    with pytest.raises(UsageError, match=f"{len(split.labels) - 1} labels; the documents have {len(split.labels)} rows"):
        codec.encode(split.labels[:-1], split.documents)


def test_a_tensor_of_another_shape_is_refused() -> None:
    codec = random_codec()
    tensors = codec.decoder_tensors() | {"decoder.bias": torch.zeros(7, dtype=torch.float16)}
    with pytest.raises(BadContainer, match=r"'decoder.bias' has shape \[7\]"):
        TokenVqae.build(codec.config, tensors)
