"""A `.vql` -> labels, aligned batches and views for a training loop; losses and temperature schedules."""

from vqlabel.training.dataset import TrainingBatch, VqlDataset, open
from vqlabel.training.losses import bce, kl, mse_gt, targets, top_k
from vqlabel.training.samplers import PooledBatches, StoredBatches
from vqlabel.training.temperature import CosineSchedule, StepSchedule, StudentTemperature
from vqlabel.training.views import ViewBatch, VqlViews

__all__ = [
    "CosineSchedule",
    "PooledBatches",
    "StepSchedule",
    "StoredBatches",
    "StudentTemperature",
    "TrainingBatch",
    "ViewBatch",
    "VqlDataset",
    "VqlViews",
    "bce",
    "kl",
    "mse_gt",
    "open",
    "targets",
    "top_k",
]
