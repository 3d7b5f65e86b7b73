"""The mix-in for trainers, with a stub that has the parts of transformers.Trainer which the mix-in uses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.text.conftest import TextFile
from vqlabel.errors import UsageError, WrongType
from vqlabel.training.text.collator import LabelCollator
from vqlabel.training.text.losses import kd_loss
from vqlabel.training.text.references import COLUMN
from vqlabel.training.text.text_labels import TextLabels
from vqlabel.training.text.trainer import KdMixin

V, D = 60, 6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0, "ce_weight": 0.3, "direction": "reverse"},
]


class Trainer:
    """A trainer of transformers 4.46 and later."""

    def __init__(self, model: nn.Module, args: Any = None, train_dataset: Any = None, data_collator: Any = None) -> None:
        self.model, self.train_dataset, self.data_collator = model, train_dataset, data_collator
        self.args = args or SimpleNamespace(remove_unused_columns=True)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return "own loss", return_outputs, num_items_in_batch


class OldTrainer(Trainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        return "own loss", return_outputs


class KdTrainer(KdMixin, Trainer):
    pass


class Student(nn.Module):
    """A causal model as transformers has them: called with names, returns logits; `head` may be any module."""

    def __init__(self, head: nn.Module | None = None, scale: float = 1.0, soft_cap: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(V, D), nn.GRU(D, D, batch_first=True)
        self.lm_head = head or nn.Linear(D, V)
        self.scale, self.soft_cap, self.shapes = scale, soft_cap, list[list[int]]()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.lm_head(self.body(self.embed(input_ids))[0]) * self.scale
        self.shapes.append(list(logits.shape))
        return {"logits": logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)}


class Wrapped(nn.Module):
    """As DistributedDataParallel: the model is called through it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Tensor) -> Any:
        return self.module(**inputs)


@pytest.fixture
def labels(file: TextFile) -> TextLabels:
    return file.open()


@pytest.fixture
def batch(file: TextFile) -> dict[str, Tensor]:
    """Two documents, padded on the right; the second one's first 3 tokens are a prompt, without a loss."""
    width, attach = 20, TextLabels(file.path).attach
    batch = {name: torch.full((2, width), fill) for name, fill in (("input_ids", 0), (COLUMN, -1), ("labels", -100))}
    for row, tokens in enumerate(file.documents[1:3]):
        n, prompt = len(tokens), 3 * row
        batch["input_ids"][row, :n] = torch.from_numpy(tokens)
        batch[COLUMN][row, :n] = torch.from_numpy(attach({"input_ids": tokens})[COLUMN])
        batch["labels"][row, prompt:n] = torch.from_numpy(tokens[prompt:])
    return {**batch, "attention_mask": (batch["labels"] != -100).long()}


def in_loss(batch: dict[str, Tensor]) -> Tensor:
    """References of the tokens before those that `labels` has."""
    references = batch[COLUMN].clone()
    references[:, :-1][batch["labels"][:, 1:] == -100] = -1
    return references


def by_hand(model: nn.Module, batch: dict[str, Tensor], labels: TextLabels, **options: Any) -> Tensor:
    return kd_loss(model(batch["input_ids"])["logits"], None, labels.at(in_loss(batch)), **options)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_kd_loss_on_the_tokens_that_labels_has(
    options: dict[str, Any], batch: dict[str, Tensor], labels: TextLabels
) -> None:
    model = Student()
    trainer = KdTrainer(model, labels=labels, **options)
    loss, expected = trainer.compute_loss(model, batch), by_hand(model, batch, labels, **options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model))
    assert set(batch) == {"input_ids", COLUMN, "labels", "attention_mask"}  # the caller's batch is unchanged


def test_without_labels_all_tokens_with_a_reference_have_a_loss(batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = Student()
    del batch["labels"]
    expected = kd_loss(model(batch["input_ids"])["logits"], None, labels.at(batch[COLUMN]))
    torch.testing.assert_close(KdTrainer(model, labels=labels).compute_loss(model, batch), expected)


@pytest.mark.parametrize("head", [nn.Linear(D, V), nn.Linear(D, V, bias=False)])
def test_the_head_computes_the_logits_of_one_token(head: nn.Module, batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = Student(head)
    trainer = KdTrainer(model, labels=labels)
    expected = by_hand(model, batch, labels)
    model.shapes.clear()
    for _ in range(2):
        torch.testing.assert_close(trainer.compute_loss(Wrapped(model), batch), expected)
    assert model.shapes == 3 * [[2, 1, V]]  # the first one is the probe
    assert not head._forward_pre_hooks


class Adapted(nn.Linear):
    def __init__(self, adapter: float = 1.0) -> None:
        super().__init__(D, V)
        self.adapter = nn.Parameter(torch.tensor(adapter))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.adapter * x[..., :1].square()


def zero_head() -> nn.Linear:
    head = nn.Linear(D, V)
    nn.init.zeros_(head.weight)
    return head


MODELS = {
    "scaled logits": lambda: Student(scale=0.5),
    "capped logits": lambda: Student(soft_cap=30.0),
    "an adapted head": lambda: Student(Adapted()),
    "a head of another kind": lambda: Student(nn.Sequential(nn.Linear(D, V))),
    "a head of zeros": lambda: Student(zero_head()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_logits_are_not_hidden_states_times_the_head_gives_its_logits(
    name: str, batch: dict[str, Tensor], labels: TextLabels
) -> None:
    model = MODELS[name]()
    trainer = KdTrainer(model, labels=labels)
    for _ in range(2):
        loss = trainer.compute_loss(model, batch)
        assert model.shapes[-1] == [2, 20, V]
        expected = by_hand(model, batch, labels)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(loss, model), gradients(expected, model))


def test_a_head_of_zeros_is_checked_again_after_the_first_step(batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = Student(zero_head())
    trainer = KdTrainer(model, labels=labels)
    trainer.compute_loss(model, batch)
    nn.init.normal_(model.lm_head.weight)  # type: ignore[arg-type]
    model.shapes.clear()
    trainer.compute_loss(model, batch)
    assert model.shapes == [[2, 1, V], [2, 1, V]]


def test_the_gradient_of_an_adapter_that_begins_at_zero_is_not_lost(batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = Student(Adapted(0.0))
    loss = KdTrainer(model, labels=labels).compute_loss(model, batch)
    torch.testing.assert_close(gradients(loss, model), gradients(by_hand(model, batch, labels), model))


class NeedsAllLogits(Student):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": super().forward(input_ids)["logits"].view(*input_ids.shape, V)}


def test_a_model_that_needs_all_its_logits_is_called_as_it_is(batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = NeedsAllLogits()
    trainer = KdTrainer(model, labels=labels)
    for _ in range(2):
        torch.testing.assert_close(trainer.compute_loss(model, batch), by_hand(model, batch, labels))


@pytest.mark.parametrize("setting", ["args.torch_compile", "args.n_gpu", "is_fsdp_enabled", "is_deepspeed_enabled"])
def test_a_compiled_or_split_model_is_called_as_it_is(setting: str, batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = Student()
    trainer: Any = KdTrainer(model, labels=labels)
    owner = trainer.args if setting.startswith("args.") else trainer
    setattr(owner, setting.removeprefix("args."), 2)
    torch.testing.assert_close(trainer.compute_loss(model, batch), by_hand(model, batch, labels))
    assert model.shapes == 2 * [[2, 20, V]]


def test_outputs_have_the_logits_of_all_tokens(batch: dict[str, Tensor], labels: TextLabels) -> None:
    model = Student()
    loss, outputs = KdTrainer(model, labels=labels).compute_loss(model, batch, return_outputs=True)
    torch.testing.assert_close(outputs["logits"], model(batch["input_ids"])["logits"])
    torch.testing.assert_close(loss, by_hand(model, batch, labels))


@pytest.mark.parametrize("form", ["tensor", "tuple", "object"])
def test_models_may_return_logits_in_any_form(form: str, batch: dict[str, Tensor], labels: TextLabels) -> None:
    class Model(Student):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            logits = super().forward(input_ids)["logits"]
            return {"tensor": logits, "tuple": (logits, 0), "object": SimpleNamespace(logits=logits)}[form]

    model, plain = Model(), Student()
    torch.testing.assert_close(KdTrainer(model, labels=labels).compute_loss(model, batch), by_hand(plain, batch, labels))


def test_the_loss_of_accumulated_batches_is_divided_by_their_tokens(batch: dict[str, Tensor], labels: TextLabels) -> None:
    model, args = Student(), SimpleNamespace(average_tokens_across_devices=True)
    trainer = KdTrainer(model, args, labels=labels)
    mean, count = trainer.compute_loss(model, batch), int((in_loss(batch) >= 0).sum())
    trainer.accelerator = SimpleNamespace(num_processes=2, autocast=lambda: torch.autocast("cpu", enabled=False))  # type: ignore[attr-defined]
    for items in (100, torch.tensor(100)):
        torch.testing.assert_close(trainer.compute_loss(model, batch, num_items_in_batch=items), mean * count * 2 / 100)
    args.average_tokens_across_devices = False
    torch.testing.assert_close(trainer.compute_loss(model, batch, num_items_in_batch=100), mean * count / 100)
    trainer.model_accepts_loss_kwargs = False  # type: ignore[attr-defined]
    torch.testing.assert_close(trainer.compute_loss(model, batch, num_items_in_batch=100), mean)


def test_columns_are_kept_and_the_collator_is_wrapped_once(labels: TextLabels) -> None:
    trainer = KdTrainer(Student(), data_collator=F.pad, labels=labels)
    assert trainer.args.remove_unused_columns is False
    assert isinstance(trainer.data_collator, LabelCollator) and trainer.data_collator.base is F.pad
    again = KdTrainer(Student(), data_collator=trainer.data_collator, labels=labels)
    assert again.data_collator is trainer.data_collator


@pytest.mark.parametrize("base", [Trainer, OldTrainer])
def test_a_validation_batch_without_references_has_the_trainers_own_loss(
    base: type[Trainer], batch: dict[str, Tensor], labels: TextLabels
) -> None:
    trainer = type("KdTrainer", (KdMixin, base), {})(Student(), labels=labels)
    del batch[COLUMN]
    loss = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    assert loss == (("own loss", True, None) if base is Trainer else ("own loss", True))
    if base is Trainer:
        assert trainer.compute_loss(trainer.model, batch, num_items_in_batch=3) == ("own loss", False, 3)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_training_batch_without_references_is_refused_with_its_causes(batch: dict[str, Tensor], labels: TextLabels) -> None:
    trainer = KdTrainer(Student(), labels=labels)
    del batch[COLUMN]
    message = (
        r"a batch has input_ids, labels, attention_mask, and no vqlabel, so no token has a label; map labels\.attach .* packing=True .*"
        r"labels\.collator around its collator, and args\.remove_unused_columns must stay False"
    )
    with pytest.raises(UsageError, match=message):
        trainer.compute_loss(trainer.model, batch)


def test_a_training_set_without_the_column_is_refused_when_the_trainer_is_made(labels: TextLabels) -> None:
    dataset = SimpleNamespace(column_names=["labels", "input_ids"])
    message = r"training set has the columns \['input_ids', 'labels'\], and no vqlabel; map labels\.attach .*: SFTTrainer with packing=True drops"
    with pytest.raises(UsageError, match=message):
        KdTrainer(Student(), train_dataset=dataset, labels=labels)
    for columns in (["input_ids", COLUMN], None):
        KdTrainer(Student(), train_dataset=SimpleNamespace(column_names=columns), labels=labels)


def test_labels_of_other_tokens_are_refused(batch: dict[str, Tensor], labels: TextLabels) -> None:
    trainer = KdTrainer(Student(), labels=labels)
    batch[COLUMN] = batch[COLUMN].roll(1, 1)
    with pytest.raises(UsageError, match=r"the column vqlabel was moved against the tokens"):
        trainer.compute_loss(trainer.model, batch)


def test_a_model_that_adds_tokens_is_refused(batch: dict[str, Tensor], labels: TextLabels) -> None:
    class Prompted(Student):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
            return super().forward(F.pad(input_ids, (2, 0)))

    trainer = KdTrainer(Prompted(), labels=labels)
    with pytest.raises(
        UsageError, match=r"the model returns \[2, 22, 6\] for a batch of \[2, 20\] tokens; labels need one row per token"
    ):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"temperature is 0; it must be above 0"),
        ({"ce_weight": 2}, r"ce_weight is 2; it must be 0\.\.1"),
        ({"direction": "both"}, r"direction is 'both'; it must be forward or reverse"),
    ],
)
def test_an_option_out_of_range_is_refused_before_training(options: dict[str, Any], message: str, labels: TextLabels) -> None:
    with pytest.raises(UsageError, match=message):
        KdTrainer(Student(), labels=labels, **options)


def test_a_path_in_place_of_labels_is_refused(file: TextFile) -> None:
    with pytest.raises(WrongType, match="labels"):
        KdTrainer(Student(), labels=file.path)  # type: ignore[arg-type]
