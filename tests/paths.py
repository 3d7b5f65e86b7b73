"""Where tests find the project's files, and real dumps where a checkout stands beside some."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHARED = ROOT.parent / "shared"
DUMP = SHARED / "data" / "in1k-ipc1" / "dump"  # SRe2L's tree: 1,000 images x 32 epochs
