"""DistillKit's compressed log-probabilities <-> numbers: its configuration, and a row of bytes -> k values.

The k values of a row descend, and are stored as, one part after the other (little-endian):

    exact        the first exact_k values in exact_dtype
    polynomial   a coefficient in term_dtype for each term: value i of the others, i = 0 .. k - exact_k - 1, is about
                 sum(coefficient * term(i)); a term is a power of i, sqrt or exp; with normalize_t, i runs from 0 to 1
    residuals    for each bin: a scale in scale_dtype, then num_elements integers q of element_bits bits, the most
                 significant bit first, padded to whole bytes; they add scale * (q - 2^(bits - 1)) to the next values;
                 of 1 bit, -scale or +scale

With delta_encoding, all of these are differences to the value before, and values are their running sums. The k ids of a
row are integers of ceil(log2 d) bits, most significant bit first, padded to whole bytes. d is the vocabulary.

Source: arcee-ai/DistillKit, distillkit/compression at a61c2e7, as read; its code is not used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels

MAX_VOCABULARY, MAX_K, MAX_POWER, MAX_BITS = 1 << 24, 1 << 12, 16, 32
_FLOATS = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
_SPECIAL = {"sqrt": np.sqrt, "exp": np.exp}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Residuals of `count` consecutive values, of `bits` bits each, times one scale."""

    scale: str  # its dtype
    bits: int
    count: int

    @property
    def size(self) -> int:
        """Bytes of its integers."""
        return -(-self.bits * self.count // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression:
    """How the values of a row are stored. Fields are named as in DistillKit's configuration, besides its bins."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str
    polynomial_terms: tuple[int | str, ...]
    term_dtype: str
    bins: tuple[Bin, ...]
    delta_encoding: bool
    normalize_t: bool

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return (self.d - 1).bit_length()

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids of a row."""
        return -(-self.k * self.id_bits // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of the values of a row."""
        terms = len(self.polynomial_terms) * _width(self.term_dtype)
        return self.exact_k * _width(self.exact_dtype) + terms + sum(_width(part.scale) + part.size for part in self.bins)

    def ids(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """[n, id_bytes] -> [n, k]"""
        return _unpack(data, self.id_bits, self.k)

    def logprobs(self, data: NDArray[np.uint8]) -> NDArray[np.floating]:
        """[n, value_bytes] -> [n, k] float32, or float64 if a part is stored as such.

        It has the roundings of DistillKit's own decoder, but for the order of sums.
        """
        exact, data = _take(data, self.exact_k, self.exact_dtype)
        coefficients, data = _take(data, len(self.polynomial_terms), self.term_dtype)
        approximate = np.zeros((len(data), self.k - self.exact_k), np.float32)
        at = 0
        for part in self.bins:
            scale, data = _take(data, 1, part.scale)
            approximate[:, at : at + part.count] = scale * _centred(_unpack(data[:, : part.size], part.bits, part.count), part.bits)
            at, data = at + part.count, data[:, part.size :]
        approximate = _rounded(approximate, self.exact_dtype)
        if self.polynomial_terms:
            products = _rounded(coefficients[:, :, None] * self._terms().astype(coefficients.dtype), self.term_dtype)
            approximate = approximate + _rounded(products.sum(1), self.term_dtype)
        values = np.concatenate([exact, approximate], 1)
        return _rounded(np.cumsum(values, 1, dtype=np.float32), self.exact_dtype) if self.delta_encoding else values

    def _terms(self) -> NDArray[np.floating]:
        """[terms, k - exact_k]"""
        count = self.k - self.exact_k
        points = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        points = _rounded(points, self.term_dtype).astype(np.float64)
        with np.errstate(all="ignore"):  # of negative powers and large exponentials: a row that uses them is refused
            terms = [_SPECIAL[term](points) if isinstance(term, str) else points ** float(term) for term in self.polynomial_terms]
            return _rounded(np.stack(terms), self.term_dtype)


def parse_compression(values: Mapping[str, Any], where: str) -> Compression:
    """Check DistillKit's configuration, as its YAML or JSON has it.

    Args:
        where: the file, for messages.

    Raises:
        BadLabels: a field is missing, has another type, or is outside its limits.
    """

    def take(source: Mapping[str, Any], key: str, limit: str, valid: Any, *default: Any) -> Any:
        value = source.get(key, *default)
        if not valid(value):
            raise BadLabels(f"{where}: {key} is {str(value)[:80]}; it must be {limit}")
        return value

    def between(low: int, high: int) -> Any:
        return lambda value: type(value) is int and low <= value <= high

    def is_float(value: Any) -> bool:
        return isinstance(value, str) and value in _FLOATS

    floats = f"one of {', '.join(_FLOATS)}"
    d = take(values, "d", f"2..{MAX_VOCABULARY}, the vocabulary", between(2, MAX_VOCABULARY))
    k = take(values, "k", f"1..{min(d, MAX_K)}", between(1, min(d, MAX_K)))
    exact_k = take(values, "exact_k", f"0..k ({k})", between(0, k))
    terms = take(values, "polynomial_terms", f"a list of powers up to {MAX_POWER}, sqrt and exp", _are_terms, None) or ()
    bins = []
    for entry in take(values, "residual_bins", "a list of bins", _are_mappings, []):
        scale = take(entry, "scale_dtype", floats, is_float)
        bits = take(entry, "element_bits", f"1..{MAX_BITS}", between(1, MAX_BITS))
        bins.append(Bin(scale=scale, bits=bits, count=take(entry, "num_elements", f"1..{k}", between(1, k))))
    left = k - exact_k
    if sum(part.count for part in bins) > left or (left and not terms and not bins):
        raise BadLabels(
            f"{where}: k - exact_k = {left} values need polynomial_terms, or residual_bins of at most {left} num_elements"
        )
    return Compression(
        d=d,
        k=k,
        exact_k=exact_k,
        exact_dtype=take(values, "exact_dtype", floats, is_float, "float32"),
        polynomial_terms=tuple(terms),
        term_dtype=take(values, "term_dtype", floats, is_float, "float32"),
        bins=tuple(bins),
        delta_encoding=take(values, "delta_encoding", "true or false", _is_bool, True),
        normalize_t=take(values, "normalize_t", "true or false", _is_bool, False),
    )


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _are_mappings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


def _are_terms(terms: Any) -> bool:
    if terms is None:
        return True
    return isinstance(terms, list) and all(
        term in _SPECIAL if isinstance(term, str) else type(term) is int and abs(term) <= MAX_POWER for term in terms
    )


def _width(dtype: str) -> int:
    return np.dtype(_FLOATS[dtype]).itemsize


def _take(data: NDArray[np.uint8], count: int, dtype: str) -> tuple[NDArray[np.floating], NDArray[np.uint8]]:
    """The first `count` numbers of each row [n, bytes], as [n, count] float32 or float64, and the bytes behind them."""
    size = count * _width(dtype)
    numbers: NDArray[Any] = np.ascontiguousarray(data[:, :size]).view(_FLOATS[dtype]).reshape(len(data), count)
    if dtype == "bfloat16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float64 if dtype == "float64" else np.float32), data[:, size:]


def _rounded(values: NDArray[np.floating], dtype: str) -> NDArray[np.floating]:
    """float32 or float64 values that a dtype can hold, to the nearest, ties to even."""
    if dtype != "bfloat16":
        stored: NDArray[np.floating] = values.astype(_FLOATS[dtype])
        return stored.astype(np.float32) if dtype == "float16" else stored
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + (0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(values), rounded.astype(np.uint32).view(np.float32), values).astype(np.float32)


def _unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """[n, bytes] -> [n, count] integers of `bits` bits, most significant bit first."""
    places = np.zeros((len(data), count, 32), np.uint8)
    places[..., 32 - bits :] = np.unpackbits(data, axis=1, count=count * bits).reshape(len(data), count, bits)
    return np.packbits(places, axis=2).view(">u4")[..., 0].astype(np.int64)


def _centred(integers: NDArray[np.int64], bits: int) -> NDArray[np.float32]:
    return (integers * 2 - 1 if bits == 1 else integers - (1 << bits - 1)).astype(np.float32)
