"""Dense labels in fewer bits a number: final hidden states in fp8, and the teacher's logits in fp16."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.errors import UsageError
from vqlabel.report.text.peers.base import Codes, TeacherRows, TextPeer, same_bits

FP8, FP8_BITS = torch.float8_e4m3fn, 8
MAX_FP8 = torch.finfo(FP8).max  # 448
SCALE_BITS = LOGIT_BITS = 16  # fp16
MIN_SCALE, MAX_FP16 = 6e-8, torch.finfo(torch.float16).max  # the smallest positive fp16 number, the largest finite one


@dataclass(frozen=True, kw_only=True, eq=False)
class Fp8Hidden(TextPeer):
    """Final hidden states as e4m3 numbers with one fp16 scale per row; a reader multiplies them by the teacher's head.

    Codes: numbers [n, d] uint8, the bytes of e4m3; scales [n, 1] float16. The head is not counted: it is public.
    """

    title = "fp8 hidden states"
    head: OutputHead

    def encode(self, rows: TeacherRows, generator: torch.Generator) -> Codes:
        """Raises UsageError: the labels are dense logits."""
        if rows.hidden is None:
            raise UsageError("fp8 hidden states need a dump of hidden states; this one has logits: leave out this peer")
        hidden = rows.hidden.float()
        largest = hidden.abs().amax(1, keepdim=True)
        scale = (largest / MAX_FP8).clamp(MIN_SCALE, MAX_FP16).half()
        numbers = (hidden / scale.float()).clamp(-MAX_FP8, MAX_FP8)
        return numbers.to(FP8).view(torch.uint8), scale

    def bits(self, codes: Codes) -> Tensor:
        return same_bits(codes, FP8_BITS * codes[0].shape[1] + SCALE_BITS)

    def decode(self, codes: Codes) -> Tensor:
        numbers, scale = codes
        return self.head.logits(numbers.view(FP8).float() * scale.float()).softmax(1)


@dataclass(frozen=True, kw_only=True)
class Teacher(TextPeer):
    """All logits in fp16. Codes: logits [n, V] float16."""

    title = "teacher's logits, fp16"

    def encode(self, rows: TeacherRows, generator: torch.Generator) -> Codes:
        return (rows.logits.clamp(-MAX_FP16, MAX_FP16).half(),)

    def bits(self, codes: Codes) -> Tensor:
        return same_bits(codes, LOGIT_BITS * codes[0].shape[1])

    def decode(self, codes: Codes) -> Tensor:
        return codes[0].float().softmax(1)
