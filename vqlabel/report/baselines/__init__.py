"""Baselines that vqae is compared with: labels -> codes -> labels, with every bit counted. All keep one contract,
`Baseline`.

A baseline is fitted to training labels at a number of bits per label, then codes any labels. All but `raw` work on
centred logits; probabilities become logits first (`as_logits`). Matrices and codebooks are used at the precision at
which their bytes are counted: fp16.
"""

from vqlabel.report.baselines.base import MAX_FP16, Baseline, TrainingLabels
from vqlabel.report.baselines.faiss_quantizers import Opq, Pq, Rq
from vqlabel.report.baselines.pca_scalar import PcaScalar
from vqlabel.report.baselines.plain import Int4, Int8, Raw
from vqlabel.report.baselines.topk import HardLabel, TopK, TopKCoded

BASELINES: dict[str, type[Baseline]] = {
    "topk": TopK,
    "topk-coded": TopKCoded,
    "raw": Raw,
    "int8": Int8,
    "int4": Int4,
    "pca-scalar": PcaScalar,
    "pq": Pq,
    "opq": Opq,
    "rq": Rq,
    "hard": HardLabel,
}

__all__ = ["BASELINES", "MAX_FP16", "Baseline", "TrainingLabels"]
