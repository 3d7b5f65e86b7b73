"""The methods that `compare_text` measures, by name. No torch."""

CODEC, CODED, FP8, LOGITS = "token_vqae", "sampling-coded", "fp8-hidden", "logits"
METHODS = {  # name -> title, in the order of the colours of plots
    CODEC: "token_vqae",
    "topk": "top-k, uniform tail",
    "topk-zero": "top-k, zero tail",
    "distillkit": "DistillKit, uniform tail",
    "distillkit-zero": "DistillKit, zero tail",
    "sampling": "random sampling",
    CODED: "random sampling, ids entropy-coded",
    FP8: "fp8 hidden states",
    LOGITS: "logits in fp16",
}


def method_of(peer: str) -> str:
    """The method that a peer of `text_peers` is a setting of."""
    if peer == "teacher":
        return LOGITS
    if peer == FP8:
        return FP8
    family = "topk" if peer.startswith("top-") else peer.split("-")[0]
    return family + "-zero" * peer.endswith("-zero")
