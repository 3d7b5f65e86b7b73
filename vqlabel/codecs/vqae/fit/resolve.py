"""A fit's configuration and a dump's properties -> the resolved configuration of the codec."""

from vqlabel.codecs.budget import budget_of
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.fit.budget import within
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats
from vqlabel.codecs.vqae.fit.rules import at_code_bits, prior_for
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError


def resolve(config: FitConfig, stats: DatasetStats) -> VqaeConfig:
    """Choose every size that the user left open.

    Raises:
        UsageError: the records cannot have the requested prior, sizes contradict each other, or a budget is too small.
    """
    prior = None if config.prior is False or config.code_width is not None else prior_for(config, stats)
    if config.prior and prior is None:
        raise UsageError("prior: these records have no image indices (or code_width is given); fit without a prior")
    budget = budget_of(config, stats.labels, stats.classes)
    return at_code_bits(config, stats, prior) if budget is None else within(config, stats, prior, budget)
