"""Messages of errors: printable, of limited length, and intact after pickling."""

import pickle
from pathlib import Path

import pytest

from vqlabel.cli import terminal
from vqlabel.errors import MAX_MESSAGE, BadLabels, MissingExtra, VqlabelError, message, printable

HOSTILE = "\x1b]0;title\x07\x1b[31mred\nvqlabel: all is well\r\x9b\u202e\udcff\x00"


def test_a_message_contains_no_control_characters() -> None:
    text = str(BadLabels(f"{HOSTILE}: na\u00efve \u4e2d"))
    assert text.isprintable() and text.endswith("\\x00: na\u00efve \u4e2d") and "\\x1b[31mred\\nvqlabel" in text
    assert printable("plain \u00fc") == "plain \u00fc"


def test_a_long_message_keeps_its_start_and_its_end() -> None:
    text = str(VqlabelError("a.vql: holds " + "x" * 15_000_000 + "; copy it again"))
    assert len(text) < MAX_MESSAGE + 50
    assert text.startswith("a.vql: holds xxx") and text.endswith("xxx; copy it again") and "[... 14,998,028 characters ...]" in text
    assert len(message("\x1b" * 15_000_000)) < 5 * MAX_MESSAGE


def test_an_error_survives_pickling() -> None:
    for error in (BadLabels(HOSTILE), MissingExtra("h5py", "hdf5")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error)


def test_notes_and_tables_contain_no_control_characters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    terminal.note(HOSTILE)
    terminal.table([("writer", HOSTILE)], ("field", "value"))
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.err.strip().isprintable()
    assert printed.out.count("\n") == 2 and all(line.isprintable() for line in printed.out.splitlines())
