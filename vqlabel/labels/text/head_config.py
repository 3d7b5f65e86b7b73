"""config.json of a model of Hugging Face transformers -> what it does between its final norm and its logits.

Read in the source of transformers 5.24: Granite, MiniCPM3 and Inkling divide, Cohere, Falcon-H1, HyperCLOVA X and Muse
multiply; Gemma and others limit logits by tanh after that.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vqlabel.errors import BadInput

# prefix of model_type, field, power of the factor on the logits, default
_SCALES = (
    ("cohere", "logit_scale", 1, 0.0625),
    ("granite", "logits_scaling", -1, 1.0),
    ("hyperclovax", "logits_scaling", 1, 1.0),
    ("falcon_h1", "lm_head_multiplier", 1, 1.0),
    ("muse_", "output_multiplier", 1, None),
    ("inkling", "logits_mup_width_multiplier", -1, 1.0),
)
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_DEFAULT_CAPS = {"gemma2": 30.0, "gemma3n_text": 30.0, "vaultgemma": 30.0, "recurrent_gemma": 30.0, "xlstm": 30.0, "nanochat": 15.0}
_LIKE_A_SCALE = re.compile(
    r"(final_|output_)?logits?_(scal|multipl|mup|soft)|output_(multipl|scal)|lm_head_(multipl|scal)|mup_output"
)
_ADD_ONE = {"gemma", "gemma2", "gemma3", "recurrent_gemma", "vaultgemma", "qwen3_next", "qwen3_5", "qwen3_5_moe", "minimax_m3_vl", "step3p5", "step3p7", "nemotron"}  # fmt: skip
_LAYER_NORM_WITHOUT_BIAS = ("cohere", "dbrx", "mpt")
_RMS_NORM_OF_LAYER_EPS = ("mamba", "falcon_mamba", "nemotron_h", "zamba")


class NormForm(NamedTuple):
    """Kind of the final norm ("rms" or "layer"), its eps, and whether 1 is added to the stored weight."""

    kind: str
    eps: float
    add_one: bool


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the language model, which those of several modalities have in a part of their own."""
    part = config.get("text_config")
    return {**config, **part} if isinstance(part, dict) else config


def model_type(config: Mapping[str, Any]) -> str:
    """Such as "gemma2"; "" if it is not recorded."""
    return str(config.get("model_type", "")).removesuffix("_text")


def read_scale(config: Mapping[str, Any], where: str) -> float:
    """The factor on the logits.

    Args:
        where: the file, for messages.

    Raises:
        BadInput: a field is no positive number; or it looks like a scale, and the model type is not known to have it.
    """
    kind, known = model_type(config), set(_CAPS)
    scale = 1.0
    for prefix, field, power, default in _SCALES:
        if kind.startswith(prefix) and (value := _number(config, field, default, where)) is not None:
            scale *= value**power
            known.add(field)
    if kind.startswith("minicpm") and "dim_model_base" in config:
        base, width = (_number(config, field, None, where) for field in ("dim_model_base", "hidden_size"))
        scale *= 1.0 if base is None or width is None else base / width
    for field, value in config.items():
        if field not in known and _LIKE_A_SCALE.match(field) and value not in (None, False, 1):
            raise BadInput(
                f"{where}: has {field} = {str(value)[:80]} for the model type {kind[:80]!r}; whether its logits are multiplied or divided by it is "
                "not known: pass scale="
            )
    return scale


def read_soft_cap(config: Mapping[str, Any], where: str) -> float | None:
    """The limit of the logits' magnitude; None: there is none. Raises BadInput if it is no positive number."""
    for field in _CAPS:
        if field in config:
            return _number(config, field, None, where)
    return _DEFAULT_CAPS.get(model_type(config))


def read_norm_form(config: Mapping[str, Any], has_bias: bool, where: str) -> NormForm | None:
    """The form of the final norm; None: it does not follow from the configuration.

    Args:
        config: {} if there is none: RMSNorm, or LayerNorm if there is a bias.
    """
    kind = model_type(config)
    fields = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    field = next((field for field in fields if config.get(field) is not None), None)
    eps = None if field is None else _number(config, field, None, where)
    if has_bias or kind.startswith(_LAYER_NORM_WITHOUT_BIAS):
        form = "layer"
    elif not config or field == "rms_norm_eps" or kind.startswith(_RMS_NORM_OF_LAYER_EPS):
        form = "rms"
    else:
        return None
    return NormForm(form, (1e-5 if form == "layer" else 1e-6) if eps is None else eps, kind in _ADD_ONE)


def _number(config: Mapping[str, Any], field: str, default: float | None, where: str) -> float | None:
    value = config.get(field, default)
    if value is None or (type(value) in (int, float) and math.isfinite(value) and value > 0):
        return None if value is None else float(value)
    raise BadInput(f"{where}: {field} is {str(value)[:80]}; it must be a positive number")
