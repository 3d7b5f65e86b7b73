"""Log-probabilities of stored tokens -> the probabilities of all tokens: those without a value share a tail, or have
none.
"""

from torch import Tensor

TAILS = UNIFORM, ZERO = ("uniform", "zero")
MIN_TAIL = 1e-8  # probability of one token of a uniform tail; values that sum to more than 1 leave less than nothing


def with_tail(ids: Tensor, log_values: Tensor, vocabulary: int, tail: str) -> Tensor:
    """[n, V] float32 probabilities that sum to 1.

    UNIFORM gives every other token an equal share of what the values leave of 1, at least MIN_TAIL, and renormalises;
    ZERO gives it 0 and renormalises over the stored tokens. Both as DistillKit's `densify` and its KL loss, commit
    a61c2e7 (`symmetric_uniform`, `zero`).

    Args:
        ids: [n, k], distinct in a row; log_values: [n, k] log-probabilities.
        tail: one of TAILS.
    """
    values, rest = log_values.exp(), vocabulary - ids.shape[1]
    if tail == ZERO or not rest:
        values = log_values.softmax(1)
        level = values.new_zeros(len(ids), 1)
    else:
        level = ((1 - values.sum(1, keepdim=True)) / rest).clamp_min(MIN_TAIL)
        total = values.sum(1, keepdim=True) + rest * level
        values, level = values / total, level / total
    return level.repeat(1, vocabulary).scatter_(1, ids.long(), values)
