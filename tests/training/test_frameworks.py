"""`VqlViews` and samplers in the loaders and training loops of other libraries, where these are installed."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, default_collate

from tests.training.view_dumps import EPOCHS, IMAGES, SIZE
from vqlabel.errors import UsageError
from vqlabel.training import PooledBatches, StoredBatches, ViewBatch, VqlViews

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be checked", "ignore:.*any folder passes")
BATCHES = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]  # records of the first epoch


def equal(one: ViewBatch, other: ViewBatch) -> bool:
    return type(one) is type(other) is ViewBatch and all(map(torch.equal, one, other))


def test_a_collate_function_gets_the_rows_of_a_batch(view_dataset: VqlViews) -> None:
    def collate(rows: list[ViewBatch]) -> list[ViewBatch]:
        assert all(type(row) is ViewBatch for row in rows)
        return list(rows)

    for records in DataLoader(view_dataset, batch_size=5, collate_fn=collate):
        want = view_dataset[[int(row.record) for row in records]]
        assert equal(default_collate(records), want), "rows alone are stacked"
    found = view_dataset.__getitems__([3, 1])
    assert default_collate(found) is found.batch, "the rows of a batch are not copied"  # type: ignore[attr-defined]


def test_views_are_stacked_with_other_datasets_and_joined(view_dataset: VqlViews) -> None:
    other = torch.arange(len(view_dataset)) * 10
    for views, value in DataLoader(StackDataset(view_dataset, other), batch_size=7):
        assert equal(views, view_dataset[views.record])
        assert torch.equal(value, 10 * views.record)
    ((views, again),) = DataLoader(StackDataset(view_dataset, view_dataset), batch_sampler=[[2, 30]])
    assert equal(views, view_dataset[[2, 30]]) and equal(again, views)
    (joined,) = DataLoader(ConcatDataset([view_dataset, view_dataset]), batch_sampler=[[1, len(view_dataset) + 7]])
    assert equal(joined, view_dataset[[1, 7]])


def test_views_as_dictionaries(view_file: Path, image_folder: Path, view_dataset: VqlViews) -> None:
    named = VqlViews(view_file, image_folder, SIZE, as_dict=True)
    assert list(named[4]) == ["views", "labels", "image", "record"]
    for batch in (
        named[[4, 2]],
        *DataLoader(named, batch_sampler=[[4, 2]]),
        *DataLoader(named, batch_sampler=[[4, 2]], num_workers=1),
    ):
        assert type(batch) is dict and equal(ViewBatch(**batch), view_dataset[[4, 2]])


def test_targets_are_the_classes_of_the_folders(view_file: Path, view_dataset: VqlViews, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"class_0": 5, "class_1": 2}')
    targets = view_dataset.targets(tmp_path / "map.json")
    assert targets.tolist() == [5] * 6 + [2] * 6 and targets.dtype == torch.int64
    with pytest.raises(UsageError, match="2 folders, but the labels have 7 classes; map folders to classes with class_map"):
        view_dataset.targets()
    with pytest.raises(UsageError, match="a list of images has no class folders; index your own classes by `image`"):
        VqlViews(view_file, list(view_dataset.images), SIZE).targets()


@pytest.mark.parametrize("size", [1, 2, 5, 6, 10, 12, 50])
def test_batches_of_another_size_have_the_records_of_an_epoch_in_stored_order(size: int, view_dataset: VqlViews) -> None:
    sampler = StoredBatches(view_dataset, batch_size=size)
    for epoch in range(EPOCHS):
        batches = list(sampler)
        assert [*chain(*batches)] == list(range(12 * epoch, 12 * epoch + 12))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(sampler) - 1)
    parts = [list(StoredBatches(view_dataset, batch_size=size, rank=rank, world=2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(StoredBatches(view_dataset, batch_size=size, rank=0, world=2))
    assert set(chain(*parts[0], *parts[1])) == set(range(12))


def test_merged_and_split_batches_show_the_same_views(view_dataset: VqlViews) -> None:
    for size in (3, 10):
        for batch in DataLoader(view_dataset, batch_sampler=StoredBatches(view_dataset, batch_size=size)):
            assert equal(batch, view_dataset[batch.record])


def test_batches_drawn_from_a_pool_can_be_merged(view_dataset: VqlViews) -> None:
    drawn, merged = ([*chain(*PooledBatches(view_dataset, 4, seed=1, batch_size=size))] for size in (None, 3))
    assert drawn == merged
    assert len(PooledBatches(view_dataset, 4, seed=1, batch_size=3)) == -(-len(drawn) // 3)


def test_a_state_that_counts_batches_of_another_size_is_refused(view_dataset: VqlViews) -> None:
    sampler = StoredBatches(view_dataset, batch_size=4)
    next(iter(sampler))
    state = sampler.state_dict()
    assert state == {"epoch": 0, "done": 1, "batch_size": 4}
    again = StoredBatches(view_dataset, batch_size=4)
    again.load_state_dict(state)
    assert list(again) == [[4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(UsageError, match="batch_size is 3; it must be 4, in which the state counts batches"):
        StoredBatches(view_dataset, batch_size=3).load_state_dict(state)
    with pytest.raises(UsageError, match="batch_size is None; it must be 4"):
        StoredBatches(view_dataset).load_state_dict(state)
    with pytest.raises(UsageError, match="batch_size is 0; it must be 1 or more"):
        StoredBatches(view_dataset, batch_size=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchdatas_stateful_loader_resumes_after_every_batch(workers: int, view_dataset: VqlViews) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader() -> Any:
        return stateful(view_dataset, batch_sampler=StoredBatches(view_dataset), num_workers=workers)

    whole = loader()
    want = [batch.record.tolist() for _ in range(2) for batch in whole]
    for stop in (1, 3, 4) if workers else range(1, 6):
        first, found = loader(), []
        while len(found) < stop:
            for batch in first:
                found.append(batch.record.tolist())
                if len(found) == stop:
                    state = first.state_dict()
                    break
        rest = loader()
        rest.load_state_dict(state)
        while len(found) < len(want):
            found += [batch.record.tolist() for batch in rest]
        assert found == want


def test_a_loader_sets_the_epoch_through_the_sampler_of_its_batch_sampler(view_dataset: VqlViews) -> None:
    """Lightning (`_set_sampler_epoch`) and accelerate (`DataLoaderDispatcher.set_epoch`) do so."""
    loader = DataLoader(view_dataset, batch_sampler=PooledBatches(view_dataset, 3, replacement=False))
    first = [batch.record.tolist() for batch in loader]
    loader.batch_sampler.sampler.set_epoch(0)  # type: ignore[union-attr, attr-defined]
    assert [batch.record.tolist() for batch in loader] == first


def page_code(page: str) -> dict[str, Any]:
    """The names that the first python block of a page of docs/frameworks defines."""
    text = (ROOT / "docs/frameworks" / page).read_text()
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_lightning_run_resumes_after_every_batch(workers: int, view_file: Path, image_folder: Path, tmp_path: Path) -> None:
    L = pytest.importorskip("lightning")
    VqlData = page_code("lightning.md")["VqlData"]

    class Student(L.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.records = torch.nn.Parameter(torch.zeros(1)), []

        def training_step(self, batch: ViewBatch, index: int) -> Any:
            self.records.append(batch.record.tolist())
            return self.weight * batch.labels.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    def run(folder: str, checkpoint: Path | None = None) -> list[list[int]]:
        save = L.pytorch.callbacks.ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[save], use_distributed_sampler=False, **quiet)
        student = Student()
        trainer.fit(student, VqlData(view_file, image_folder, SIZE, workers), ckpt_path=checkpoint)
        return student.records

    whole = run("whole")
    assert whole == BATCHES + [[record + IMAGES for record in batch] for batch in BATCHES]
    for step in (3, 4) if workers else range(1, 6):
        assert run("again", tmp_path / f"whole/step={step}.ckpt") == whole[step:]


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_hugging_faces_trainer_resumes_after_every_batch(view_file: Path, image_folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = (ROOT / "docs/frameworks/hugging-face-trainer.md").read_text()
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("\n\nviews = ")[0], names)

    class Student(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 7)

        def forward(self, views: torch.Tensor) -> torch.Tensor:
            return self.linear(views.mean((2, 3)))

    class Recording(names["DistillationTrainer"]):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            records.append(inputs["record"].tolist())
            return super().compute_loss(model, inputs, *arguments, **options)

    def run(resume: str | None = None) -> list[list[int]]:
        records.clear()
        arguments = transformers.TrainingArguments(
            str(tmp_path / ("whole" if resume is None else "again")), num_train_epochs=2, save_strategy="steps", save_steps=1, report_to=[],
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Recording(Student(), arguments, train_dataset=views).train(resume_from_checkpoint=resume)
        return list(records)

    records: list[list[int]] = []
    views = VqlViews(view_file, image_folder, SIZE, as_dict=True)
    whole = run()
    assert whole == BATCHES + [[record + IMAGES for record in batch] for batch in BATCHES]
    for step in range(1, 6):
        assert run(str(tmp_path / f"whole/checkpoint-{step}")) == whole[step:]
