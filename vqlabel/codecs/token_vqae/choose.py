"""Labels -> for every label the codes, exact ids and their numbers with the least KL plus price times bits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vqlabel.codecs.token_vqae.config import TokenVqaeConfig
from vqlabel.codecs.token_vqae.decoder import TokenDecoder
from vqlabel.codecs.token_vqae.exact_ids import ZERO_LEVEL, choose_ids
from vqlabel.codecs.vqae.search import CodeSearch
from vqlabel.config import LEVEL_BITS
from vqlabel.metrics.factored import chunk_rows

TEACHER_CANDIDATES, DECODED_CANDIDATES = 24, 16  # likeliest ids of teacher and decoder that may become exact


class Choices(NamedTuple):
    """What a label costs with the first codes and ids, for n labels and P numbers of codes."""

    slots: Tensor  # [P] numbers of codes
    kl: Tensor  # [n, P, M + 1] nats with 0 .. M exact ids
    codes: Tensor  # [n, m] of all slots
    ids: Tensor  # [n, P, M]
    levels: Tensor  # [n, P, M] as stored

    def bits(self, config: TokenVqaeConfig) -> Tensor:
        """[P, M + 1] code bits of a label, without its counts."""
        ids = torch.arange(self.kl.shape[2], device=self.kl.device)
        return self.slots[:, None] * config.code_bits + ids * (config.id_bits + LEVEL_BITS)

    def cheapest(self, config: TokenVqaeConfig, price: float) -> Tensor:
        """[n] indices, into P * (M + 1) pairs, of the least KL plus price times bits."""
        cost: Tensor = (self.kl + price * self.bits(config)).flatten(1)
        return cost.argmin(1)

    def stored(self, config: TokenVqaeConfig, price: float) -> Tensor:
        """[n, 2 + m + 2 M] int64 fields of the labels: counts, codes, ids, levels; 0 beyond the counts."""
        pick = self.cheapest(config, price)
        prefix, count = pick // self.kl.shape[2], pick % self.kl.shape[2]
        slots, rows = self.slots[prefix], torch.arange(len(pick), device=pick.device)
        has_code = torch.arange(self.codes.shape[1], device=pick.device) < slots[:, None]
        has_id = torch.arange(self.ids.shape[2], device=pick.device) < count[:, None]
        return torch.cat(
            [
                slots[:, None],
                count[:, None],
                torch.where(has_code, self.codes, 0),
                torch.where(has_id, self.ids[rows, prefix], 0),
                torch.where(has_id, self.levels[rows, prefix], 0),
            ],
            1,
        )

    @classmethod
    def join(cls, parts: Sequence["Choices"]) -> "Choices":
        """Choices of several groups of labels."""
        return cls(parts[0].slots, *(torch.cat(arrays) for arrays in zip(*(part[1:] for part in parts), strict=True)))


def prefixes(slots: int) -> list[int]:
    """Numbers of codes that a label may have: all up to 2, then every second one."""
    return [j for j in range(slots + 1) if j <= 2 or j % 2 == 0 or j == slots]


class TokenSearch:
    """Finds codes slot by slot, by the exact KL of every code; then, after every prefix, ids one by one."""

    def __init__(self, config: TokenVqaeConfig, decoder: TokenDecoder) -> None:
        self.config, self.decoder = config, decoder
        self.search = CodeSearch(decoder.codebook.detach(), decoder.out.detach(), decoder.bias.detach(), (1.0,))

    @torch.no_grad()
    def __call__(self, latent: Tensor, teacher: Tensor) -> Choices:
        """All choices of labels.

        Args:
            latent: [n, d_h] prior; teacher: [n, V] probabilities.
        """
        config, decoder = self.config, self.decoder
        logits = decoder.logits(latent)
        _, codes = self.search.prefixes(logits, teacher)
        counts, kls, ids, levels = prefixes(config.slots), [], [], []
        negative_entropy = torch.special.xlogy(teacher, teacher).sum(1)
        likely = teacher.topk(min(TEACHER_CANDIDATES, config.classes), 1).indices if config.ids else codes[:, :0]
        previous = 0
        for count in counts:
            for slot in range(previous, count):
                logits += self.search.moves[slot].index_select(0, codes[:, slot])
            previous = count
            partition = torch.logsumexp(logits, 1)
            kl = negative_entropy - (teacher * logits).sum(1) + partition
            if not config.ids:
                kls.append(kl.double()[:, None])
                continue
            candidates, weight, tail = _candidates(logits, likely)
            of_count, chosen, level = choose_ids(teacher.gather(1, candidates), weight, tail, kl.double(), config.ids)
            kls.append(of_count)
            ids.append(candidates.gather(1, chosen))
            levels.append(level + ZERO_LEVEL)
        none = codes.new_zeros(len(codes), len(counts), 0)
        return Choices(
            torch.tensor(counts, device=codes.device),
            torch.stack(kls, 1),
            codes,
            torch.stack(ids, 1) if ids else none,
            torch.stack(levels, 1) if levels else none,
        )


def _candidates(logits: Tensor, likely: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [n, c] that are likely under the teacher or decoded as such; their weights exp(logit - largest), 0 for a
    repeated id; and the weight [n] of all other tokens.
    """
    decoded = logits.topk(min(DECODED_CANDIDATES, logits.shape[1]), 1)
    repeated = (decoded.indices[:, :, None] == likely[:, None]).any(2)
    candidates = torch.cat([likely, decoded.indices], 1)
    weights = (logits - decoded.values[:, :1]).exp_()
    weight = weights.gather(1, candidates)
    weight[:, likely.shape[1] :].masked_fill_(repeated, 0.0)
    tail = weights.scatter_(1, candidates, 0.0).sum(1)
    return candidates, weight, tail


def search_rows(vocabulary: int) -> int:
    """Labels that are searched at a time, [rows, V] in 16 MB: glibc maps new pages for every larger matrix."""
    return min(512, max(16, chunk_rows(vocabulary) // 2))
