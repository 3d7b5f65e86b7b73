"""What a source notes when it is opened reaches Python as `source.notes` and the terminal on stderr."""

from pathlib import Path

import numpy as np
import pytest

from vqlabel.cli import terminal
from vqlabel.labels import open_labels
from vqlabel.labels.pruning import Pruned


def test_notes_of_a_source_pass_to_its_pruned_part_and_are_printed_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.eye(4, dtype=np.float32) * 3 - 1)
    source = open_labels(tmp_path / "a.npy")
    assert source.notes == []
    source.notes.append("a.npy: is read as a test reads it")
    assert open_labels(tmp_path / "a.npy").notes == []
    assert terminal.report_order_evidence(Pruned(source, 1.0)).notes == source.notes
    printed = capsys.readouterr()
    assert printed.err == "vqlabel: a.npy: is read as a test reads it\n" and printed.out == ""
