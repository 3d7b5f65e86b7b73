"""What a user would store instead of a vqae: labels -> codes -> labels, with every bit counted. One contract for all.

A peer is fitted to labels that it has seen, at a number of bits a label, and then asked about any labels. All but `raw` work on
centred logits; probabilities become logits first (`as_logits`). Matrices and codebooks are used at the precision at which they are
counted: fp16.
"""

from vqlabel.report.baselines.base import HALF_MOST, Peer, Seen
from vqlabel.report.baselines.exact_top import Hard, TopK, TopKCoded
from vqlabel.report.baselines.plain import Int4, Int8, Raw
from vqlabel.report.baselines.transform import PcaScalar
from vqlabel.report.baselines.vectors import Faiss, Opq, Pq, Rq, import_faiss

PEERS: dict[str, type[Peer]] = {
    "topk": TopK,
    "topk-coded": TopKCoded,
    "raw": Raw,
    "int8": Int8,
    "int4": Int4,
    "pca-scalar": PcaScalar,
    "pq": Pq,
    "opq": Opq,
    "rq": Rq,
    "hard": Hard,
}

__all__ = ["HALF_MOST", "PEERS", "Faiss", "Peer", "Seen", "import_faiss"]
