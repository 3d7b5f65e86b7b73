"""A causal language model of Hugging Face -> the hidden states in front of its output head, without all logits."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PEAK = 1000.0  # largest logit of the probe; a soft cap, such as Gemma 2's of 30, changes it
TOLERANCE = 0.02  # of PEAK; bf16 rounds by 0.4 %


class HeadInput:
    """Calls a model for the input of its output head, of which the head computes the logits of the first token only.

    The model is called as a whole, so that wrappers for distributed training and precision see their forward pass. The
    first call compares the model's logits with those of weight and bias at large logits. If they differ, the model
    scales or caps its logits, or has an adapter at its head, and its hidden states are not used.

    Args:
        model: unwrapped; None, or a model whose head is not a plain linear layer: there are no hidden states.

    Attributes:
        head: whose input is read; None: there are no hidden states.
    """

    def __init__(self, model: nn.Module | None) -> None:
        get_head = getattr(model, "get_output_embeddings", None)
        head = get_head() if callable(get_head) else None
        is_plain = type(head) is nn.Linear and type(head.weight.data) is Tensor and head.weight.ndim == 2
        self.head: nn.Linear | None = head if is_plain else None
        self._is_checked = False

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
        """[b, L, d] hidden states, or None: use the model's logits.

        Args:
            model: as the trainer wraps it; inputs: its arguments.
        """
        if self.head is None:
            return None
        if not self._is_checked:
            self._check(model, inputs)
            return self(model, inputs) if self._is_checked else None
        return self._call(model, inputs, lambda hidden: hidden[:, :1])[0]

    def _call(self, model: nn.Module, inputs: Mapping[str, Any], first: Any) -> tuple[Tensor | None, Tensor]:
        """The input of the head, None if the head was not called once; and the model's logits of `first(input)`."""
        assert self.head is not None
        states: list[Tensor] = []

        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not arguments:
                return None
            states.append(arguments[0])
            return first(arguments[0]), *arguments[1:]

        hook = self.head.register_forward_pre_hook(keep)
        try:
            logits = logits_of(model(**inputs))
        finally:
            hook.remove()
        return states[0] if len(states) == 1 else None, logits

    @torch.no_grad()
    def _check(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Give up the head if the model's logits are not those of its weight and bias."""
        head, probes = self.head, list[Tensor]()
        assert head is not None
        weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()

        def probe(hidden: Tensor) -> Tensor:
            row = hidden[:, :1]
            peak = F.linear(row.float(), weight).abs().max()
            probes.append(row * (PEAK / peak).to(row.dtype))
            return probes[0]

        try:
            hidden, logits = self._call(model, inputs, probe)
        except Exception:  # a model that needs all its logits; if it fails for another reason, it fails again
            self.head = None
            return
        if hidden is None or not probes:
            self.head = None
        elif probes[0].isfinite().all():  # else a head of zeros, as before the first step; the next call checks it
            expected = F.linear(probes[0].float(), weight, bias)
            is_linear = logits.shape == expected.shape and bool((logits.float() - expected).abs().max() <= TOLERANCE * PEAK)
            self.head, self._is_checked = head if is_linear else None, is_linear


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a model returns: a tensor, an object or a mapping with `logits`, or a tuple that begins with
    them.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs["logits"] if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    first: Tensor = outputs[0] if logits is None else logits
    return first
