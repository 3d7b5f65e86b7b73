"""Choices of held-out labels -> rates: price, bits and KL; and the price of a rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from vqlabel.codecs.token_vqae.choose import Choices
from vqlabel.codecs.token_vqae.config import TokenVqaeConfig
from vqlabel.config import LEVEL_BITS
from vqlabel.errors import UsageError

MAX_PRICE, MIN_PRICE = 1.0, 1e-5  # nats per bit
PRICES = 48  # of the curve, evenly spaced in their logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What labels cost and lose at a price, on average over labels."""

    price: float  # nats of KL that a bit removes
    bits: float  # code bits per label, the entropy of counts included
    kl: float  # nats, of the teacher from the decoded labels
    slots: float  # codes per label
    ids: float  # exact ids per label

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def rate_at(choices: Choices, config: TokenVqaeConfig, price: float) -> Rate:
    """The rate at one price."""
    pick = choices.cheapest(config, price)
    per_id = choices.kl.shape[2]
    slots, ids = choices.slots[pick // per_id], pick % per_id
    bits = slots * config.code_bits + ids * (config.id_bits + LEVEL_BITS)
    return Rate(
        price=price,
        bits=float(bits.double().mean()) + _entropy(slots) + _entropy(ids),
        kl=float(choices.kl.flatten(1).gather(1, pick[:, None]).mean()),
        slots=float(slots.double().mean()),
        ids=float(ids.double().mean()),
    )


def rates(choices: Choices, config: TokenVqaeConfig) -> list[Rate]:
    """The curve, from the highest price to the lowest."""
    prices = torch.logspace(torch.tensor(MAX_PRICE).log10(), torch.tensor(MIN_PRICE).log10(), PRICES, dtype=torch.float64)
    return [rate_at(choices, config, float(price)) for price in prices]


def price_of(choices: Choices, config: TokenVqaeConfig, bits: float) -> float:
    """The price at which labels have `bits` code bits on average, or as near below as there are choices."""
    low, high = MIN_PRICE, MAX_PRICE
    if rate_at(choices, config, low).bits <= bits:
        return low
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if rate_at(choices, config, middle).bits <= bits else (middle, high)
    return high


def price_of_kl(choices: Choices, config: TokenVqaeConfig, kl: float) -> float | None:
    """The highest price, so the fewest bits, at which the mean KL is at most `kl` nats; None: there is none."""
    low, high = MIN_PRICE, MAX_PRICE
    if rate_at(choices, config, low).kl > kl:
        return None
    if rate_at(choices, config, high).kl <= kl:
        return high
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rate_at(choices, config, middle).kl <= kl else (low, middle)
    return low


def rate_between(rates: Sequence[Mapping[str, float]], bits: float) -> Rate:
    """The rate of `bits` code bits per label on the curve of a codec file; its price is interpolated in its logarithm.

    Raises:
        UsageError: the codec file has no curve, or it does not reach these bits.
    """
    if len(rates) < 2:
        raise UsageError("the codec file has no curve of rates; pack it without --bits, or fit a codec")
    curve = sorted((Rate(**rate) for rate in rates), key=lambda rate: rate.bits)
    if not curve[0].bits <= bits <= curve[-1].bits:
        reach = f"{curve[0].bits:.2f} to {curve[-1].bits:.1f}"
        raise UsageError(f"bits is {bits:g}; this codec has {reach} code bits per label: fit one with more slots or ids")

    def at(values: list[float]) -> float:
        return float(np.interp(bits, [rate.bits for rate in curve], values))

    price = math.exp(at([math.log(rate.price) for rate in curve]))
    others = {name: at([getattr(rate, name) for rate in curve]) for name in ("kl", "slots", "ids")}
    return Rate(price=price, bits=bits, **others)


def _entropy(symbols: torch.Tensor) -> float:
    """Bits per symbol of integers [n] at their own frequencies."""
    share = torch.bincount(symbols).double() / max(1, len(symbols))
    return float(-torch.special.xlogy(share, share).sum() / torch.log(torch.tensor(2.0)))
