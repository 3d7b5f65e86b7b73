"""A name or a folder -> a teacher of documents: token ids -> the final hidden states that an output head reads."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqlabel.errors import UsageError, VqlabelError
from vqlabel.labels.text.head import open_head
from vqlabel.labels.text.head_contract import Head
from vqlabel.threads import large_operations
from vqlabel.type_checks import check_argument_types
from vqlabel.workflows.teachers import TeacherFailed
from vqlabel.workflows.text.causal_lm import CausalLanguageModel, load_causal_lm
from vqlabel.workflows.text.teacher_head import NAMES, head_of
from vqlabel.workflows.user_code import one_line, sha256_of, user_object

FORMS = "the folder of a causal language model of transformers, or module:function"

Network = Callable[[Tensor, Tensor], Any]  # tokens [b, L] int64 and mask [b, L] bool -> hidden states [b, L, d]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTeacher:
    """A causal language model up to its output head.

    Attributes:
        name: for messages and files; of a folder, its last part.
        network: called with documents padded on the right, and a mask that is False at padding.
        head: reads the hidden states.
        model: the same as a model of transformers, whose logits its head is checked against; None: there is none.
        device: where the network is.
    """

    name: str
    network: Network
    head: Head
    model: CausalLanguageModel | None
    device: str

    @property
    def longest(self) -> int | None:
        """Tokens of the longest document that the network reads; None: unknown."""
        return None if self.model is None else self.model.longest

    @property
    def tokenizer(self) -> Path | None:
        """The folder of the model, if it has a tokenizer."""
        return None if self.model is None else self.model.tokenizer

    @property
    def identity(self) -> dict[str, str]:
        """Name, and sha256 of the weights, if the network has any."""
        owner = self.network if self.model is None else self.model.network
        state = getattr(owner, "state_dict", None)
        return {"name": self.name} if state is None else {"name": self.name, "sha256": sha256_of(state())}

    @torch.inference_mode()
    def __call__(self, documents: Sequence[NDArray[np.int64]]) -> list[Tensor]:
        """Hidden states [L, d] of each document, on the CPU, of the network's floating type.

        Raises:
            TeacherFailed: the network raises an exception.
            UsageError: it returns something other than hidden states.
            VqlabelError: the device has too little memory.
        """
        lengths = [len(tokens) for tokens in documents]
        padded = np.zeros((len(documents), max(lengths)), np.int64)
        for row, document in zip(padded, documents, strict=True):
            row[: len(document)] = document
        tokens, mask = torch.from_numpy(padded), torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        hidden = self._run(tokens.to(self.device), mask.to(self.device))
        return [states[:length].to("cpu", copy=True) for states, length in zip(hidden, lengths, strict=True)]

    def _run(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """[b, L] and its mask -> [b, L, d]."""
        shape = list(tokens.shape)
        try:
            with large_operations():
                output = self.network(tokens, mask)
        except VqlabelError:
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise VqlabelError(
                f"teacher {self.name}: out of memory on {shape[0]} documents of up to {shape[1]} tokens ({one_line(error)}); lower --batch"
            ) from error
        except SystemExit as error:
            raise UsageError(
                f"teacher {self.name}: ends the program (SystemExit {error.code}) when it is called; raise an error instead"
            ) from error
        except Exception as error:  # the user's code may raise anything
            raise TeacherFailed(
                f"teacher {self.name}: fails on tokens {shape} ({type(error).__name__}: {one_line(error)}); it is called with tokens [b, L] and a mask "
                "[b, L], and returns hidden states [b, L, d]"
            ) from error
        hidden = getattr(output, "last_hidden_state", output)
        if not isinstance(hidden, Tensor) or not hidden.is_floating_point() or list(hidden.shape) != [*shape, self.head.width]:
            got = f"{list(hidden.shape)} of {hidden.dtype}" if isinstance(hidden, Tensor) else type(hidden).__name__
            raise UsageError(
                f"teacher {self.name}: returns {got} for tokens {shape}; it must return hidden states {[*shape, self.head.width]}, the width of its "
                f"head {self.head.name} in {self.head.path}"
            )
        return hidden


@check_argument_types
def load_text_teacher(name: str | PathLike[str], *, head: str | PathLike[str] | None = None, device: str = "cpu") -> TextTeacher:
    """Load a teacher of documents. Load only what you trust: modules can run any code.

    Args:
        name: the folder of a causal language model of transformers; or "module:function", a function of tokens [b, L]
            int64 and mask [b, L] bool that returns the final hidden states [b, L, d], a torch.nn.Module with such a
            forward, or a function without arguments that returns one of them. Modules are also searched in the current
            folder.
        head: the output head, a path for `open_head`; None: that of the folder, or the attribute `head` or `lm_head` of
            the module or function: a linear layer, a tensor [V, d] or a path.
        device: where the network runs.

    Raises:
        UsageError: there is no such teacher, or it has no head.
        BadInput: the head cannot be read.
        MissingExtra: transformers is not installed.
    """
    name = str(name)
    if Path(name).is_dir():
        model = load_causal_lm(Path(name), device)
        stored = replace(open_head(name if head is None else head), norm=None)  # the network applies it
        return TextTeacher(name=Path(name).resolve().name, network=model.hidden, head=stored, model=model, device=device)
    if not all(name.partition(":")) or Path(name).exists():
        raise UsageError(f"--teacher {name}: {'is no folder' if Path(name).exists() else 'no such folder'}; name {FORMS}")
    target = user_object(name, _called, FORMS)
    if not callable(target):
        raise UsageError(
            f"--teacher {name}: is or returns a {type(target).__name__}; it must be callable with tokens [b, L] and a mask [b, L]"
        )
    if isinstance(target, nn.Module):
        target.eval().to(device)
    own = head_of(target, name) if head is None else head
    if own is None:
        raise UsageError(
            f"--teacher {name}: has no attribute {' or '.join(NAMES)} that is a linear layer, a tensor [V, d] or a path; pass its output head with "
            "--head (a model folder or .safetensors file)"
        )
    return TextTeacher(
        name=name, network=target, head=open_head(own) if isinstance(own, str | PathLike) else own, model=None, device=device
    )


def _called(target: Any) -> Any:
    """What a function without arguments returns; all else is the teacher itself."""
    if isinstance(target, nn.Module) or not callable(target):
        return target
    try:
        inspect.signature(target).bind()
    except TypeError:
        return target
    return target()
