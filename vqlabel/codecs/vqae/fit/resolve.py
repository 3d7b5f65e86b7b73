"""What the user named, and what the dump is -> every number of the codec."""

from vqlabel.codecs.budget import budget_of
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.fit.budget import within
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats
from vqlabel.codecs.vqae.fit.rules import at_code_bits, prior_for
from vqlabel.config import FitConfig
from vqlabel.errors import UsageError


def resolve(config: FitConfig, stats: DatasetStats) -> VqaeConfig:
    """Every number that the user left open.

    Raises:
        UsageError: a prior was asked for that these records allow not, sizes contradict each other, or a budget is too small.
    """
    prior = None if config.prior is False or config.code_width is not None else prior_for(config, stats)
    if config.prior and prior is None:
        raise UsageError("prior: these records do not say which image they belong to (or code_width is given); fit without it")
    budget = budget_of(config, stats.labels, stats.classes)
    return at_code_bits(config, stats, prior) if budget is None else within(config, stats, prior, budget)
