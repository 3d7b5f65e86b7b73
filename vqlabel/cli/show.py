"""What each command prints: the dictionary of --json -> text."""

from vqlabel.cli.show_compare import show_compare
from vqlabel.cli.show_demo import show_demo, show_text_demo
from vqlabel.cli.show_fit import show_fit, show_pack, show_relabelled, show_trial, show_tuned
from vqlabel.cli.show_stats import show_distortion, show_stats

__all__ = [
    "show_compare",
    "show_demo",
    "show_distortion",
    "show_fit",
    "show_pack",
    "show_relabelled",
    "show_stats",
    "show_text_demo",
    "show_trial",
    "show_tuned",
]
