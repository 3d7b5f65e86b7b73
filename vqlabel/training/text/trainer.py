"""Hugging Face's Trainer and TRL's SFTTrainer -> trainers whose loss is on a teacher's labels."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vqlabel.errors import UsageError
from vqlabel.training.loss_checks import check_argument_type
from vqlabel.training.text.collator import LabelCollator
from vqlabel.training.text.hidden_states import HeadInput, logits_of
from vqlabel.training.text.lookup import TOKENS
from vqlabel.training.text.losses import check_options, kd_loss
from vqlabel.training.text.references import COLUMN, NO_LABEL
from vqlabel.training.text.text_labels import TextLabels

IGNORED = -100  # of the column `labels` of Hugging Face: a token that no loss is of
CAUSES = (
    f"map labels.attach over the training set, and keep the column: SFTTrainer with packing=True drops all columns but {TOKENS} and labels, so "
    "pack by trl.pack_dataset and pass SFTConfig(packing=True, dataset_kwargs={'skip_prepare_dataset': True})"
)


class KdMixin:
    """A mix-in for a Trainer, with `kd_loss` on the labels that tokens refer to.

        class KdTrainer(vqlabel.KdMixin, SFTTrainer): ...

        labels = vqlabel.open_text("labels.vql", corpus=dataset)
        trainer = KdTrainer(model, args=args, train_dataset=dataset.map(labels.attach), labels=labels)

    The loss is of the tokens whose `labels` Hugging Face's own loss would predict, so a mask of prompts is kept. Over
    accumulated batches it is divided by the number of these tokens. Batches of a validation set without the column have
    the trainer's own loss. The trainer's metrics of its own loss, and auxiliary losses of mixtures of experts, are
    left out.

    The student's logits exist for a chunk of tokens at a time where its output head is a plain linear layer and it is
    trained on one device or by DDP. Otherwise, and in evaluation, they are computed as the model does.

    Args:
        args, kwargs: of the trainer. `remove_unused_columns` is set to False, and `data_collator` is wrapped by
            `labels.collator`.
        labels: of the training set; moved to the device of the batches.
        temperature: T; ce_weight: 0..1; direction: "forward" or "reverse": as `kd_loss` takes them.

    Raises:
        UsageError: an option is out of range, or the training set or a training batch has no references.
    """

    def __init__(
        self,
        *args: Any,
        labels: TextLabels,
        temperature: float = 1.0,
        ce_weight: float = 0.0,
        direction: str = "forward",
        **kwargs: Any,
    ) -> None:
        check_argument_type("labels", labels, TextLabels)
        check_options(temperature, ce_weight, direction)
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.args.remove_unused_columns = False
        if not isinstance(trainer.data_collator, LabelCollator):
            trainer.data_collator = labels.collator(trainer.data_collator)
        self.kd_labels = labels
        self.kd_options: dict[str, Any] = {"temperature": temperature, "ce_weight": ce_weight, "direction": direction}
        self._head_input: HeadInput | None = None
        columns = getattr(getattr(self, "train_dataset", None), "column_names", None)
        if columns is not None and COLUMN not in columns:
            raise UsageError(f"the trainer's training set has the columns {sorted(columns)}, and no {COLUMN}; {CAUSES}")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; with `return_outputs`, and the model's outputs."""
        if COLUMN not in inputs:
            if model.training:
                raise UsageError(
                    f"a batch has {', '.join(inputs)}, and no {COLUMN}, so no token has a label; {CAUSES}. A data loader of your own needs "
                    "labels.collator around its collator, and args.remove_unused_columns must stay False"
                )
            items = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **items)  # type: ignore[misc]
        inputs = dict(inputs)
        references = _in_loss(inputs.pop(COLUMN), inputs.pop("labels", None))
        labels = self.kd_labels.to(references.device).at(references, inputs.get(TOKENS))
        outputs, student, head, bias = self._student(model, inputs, return_outputs)
        if student.shape[:2] != references.shape:
            raise UsageError(
                f"the model returns {list(student.shape)} for a batch of {list(references.shape)} tokens; labels need one row per token"
            )
        with self._autocast():
            loss = kd_loss(student, head, labels, bias=bias, **self.kd_options)
        loss = self._scaled(loss, len(labels), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _student(
        self, model: nn.Module, inputs: dict[str, Any], need_outputs: bool
    ) -> tuple[Any, Tensor, Tensor | None, Tensor | None]:
        """The model's outputs, hidden states, weight and bias of the head; or outputs, logits, None, None."""
        if not need_outputs:
            if self._head_input is None:
                self._head_input = self._find_head(model)
            hidden = self._head_input(model, inputs)
            if hidden is not None and self._head_input.head is not None:
                return None, hidden, self._head_input.head.weight, self._head_input.head.bias
        outputs = model(**inputs)
        return outputs, logits_of(outputs), None, None

    def _find_head(self, model: nn.Module) -> HeadInput:
        """Of the model without wrappers; of none, if its weights lie on several devices or its calls are compiled."""
        trainer: Any = self
        is_sharded = any(getattr(self, f"is_{name}_enabled", False) for name in ("fsdp", "deepspeed"))
        is_compiled = hasattr(model, "_orig_mod") or getattr(trainer.args, "torch_compile", False)
        is_split = is_sharded or is_compiled or getattr(trainer.args, "n_gpu", 1) > 1
        return HeadInput(None if is_split else trainer.model)

    def _autocast(self) -> AbstractContextManager[Any]:
        """The precision in which the trainer calls the model."""
        accelerator = getattr(self, "accelerator", None)
        return nullcontext() if accelerator is None else accelerator.autocast()

    def _scaled(self, loss: Tensor, count: int, items: Any) -> Tensor:
        """The mean over `count` labels -> their sum divided by the tokens of all accumulated batches, if the trainer
        passes their number and does not divide by the number of batches.
        """
        trainer: Any = self
        if items is None or not getattr(self, "model_accepts_loss_kwargs", True):
            return loss
        processes = trainer.accelerator.num_processes if getattr(trainer.args, "average_tokens_across_devices", False) else 1
        return loss * (count * processes / torch.as_tensor(items).clamp(min=1))


def _in_loss(references: Tensor, targets: Tensor | None) -> Tensor:
    """References [b, L] of the tokens whose next token is a target; `targets` [b, L] are not shifted."""
    if targets is None:
        return references
    kept = torch.zeros_like(references, dtype=torch.bool)
    kept[:, :-1] = targets[:, 1:] != IGNORED
    return references.masked_fill(~kept, NO_LABEL)
