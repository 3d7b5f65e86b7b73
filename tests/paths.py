"""Paths of the project's files, and of a real dump beside the checkout, if there is one."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHARED = ROOT.parent / "shared"
DUMP = SHARED / "data" / "in1k-ipc1" / "dump"  # SRe2L's layout: 1,000 images x 32 epochs
