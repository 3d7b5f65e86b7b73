"""A folder of Hugging Face transformers -> a causal language model: its hidden states, and its own logits.

The body of such a model (LlamaModel, GPT2Model, GemmaModel ...) returns `last_hidden_state` behind the final norm: what
its output head reads, and what it also returns as the last of all `hidden_states`. Read in the source of transformers
5.24. The body alone keeps neither the states of other layers nor logits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqlabel.errors import UsageError, VqlabelError
from vqlabel.workflows.user_code import import_library, one_line

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_AUTO_DTYPE = 5  # the major version of transformers that loads weights in their stored type by default


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalLanguageModel:
    """A model of transformers.

    Attributes:
        path: its folder.
        network: an instance of one of the ...ForCausalLM classes.
    """

    path: Path
    network: Any

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that its positions allow; None: its configuration does not record it."""
        longest = getattr(self.network.config, "max_position_embeddings", None)
        return longest if isinstance(longest, int) else None

    @property
    def tokenizer(self) -> Path | None:
        """The folder, if it has a tokenizer."""
        return self.path if any((self.path / name).exists() for name in _TOKENIZER_FILES) else None

    def hidden(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [b, L] and mask [b, L] bool -> what the output head reads, [b, L, d]."""
        output = self.network.base_model(input_ids=tokens, attention_mask=mask.long(), use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """Tokens [L] -> the model's own logits [L, V] float32, on the CPU; its vocabulary may be padded."""
        logits: Tensor = self.network(input_ids=tokens[None], use_cache=False).logits
        return logits[0].float().cpu()


def load_causal_lm(path: Path, device: str) -> CausalLanguageModel:
    """Load a model from its folder; nothing is downloaded.

    Raises:
        MissingExtra: transformers is not installed.
        UsageError: the folder has no such model.
    """
    name = f"--teacher {path}"
    if not (path / "config.json").exists():
        raise UsageError(f"{name}: has no config.json; pass the folder of a causal language model of transformers")
    transformers = import_library("transformers", name)
    stored_type = {} if int(transformers.__version__.partition(".")[0]) >= _AUTO_DTYPE else {"torch_dtype": "auto"}
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(str(path), local_files_only=True, **stored_type)
    except VqlabelError:
        raise
    except Exception as error:  # the library raises nearly anything
        raise UsageError(f"{name}: transformers loads no causal language model from it ({one_line(error)})") from None
    network.eval()
    network.to(device)
    return CausalLanguageModel(path=path, network=network)
