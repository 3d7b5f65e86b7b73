"""A `.vql` -> labels, aligned batches and views for a training loop; losses and temperature schedules."""

from vqlabel.training.dataset import VqlDataset, open
from vqlabel.training.losses import (
    StepSchedule,
    StudentTemperature,
)
from vqlabel.training.views import PooledBatches, StoredBatches, VqlViews

__all__ = ["PooledBatches", "StepSchedule", "StoredBatches", "StudentTemperature", "VqlDataset", "VqlViews", "open"]
