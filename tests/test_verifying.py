"""What sound bytes do not tell: codes outside their codebook, and a decoder that cannot be built. From Python as from the shell."""

from pathlib import Path

import pytest
from torch import Tensor
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.cli import app
from vqlabel.codecs import LabelCodec
from vqlabel.container import verify as verify_bytes
from vqlabel.errors import BadContainer


def refused(path: Path, message: str) -> None:
    verify_bytes(path)  # sound: only the codec's configuration tells
    with pytest.raises(BadContainer, match=message) as found:
        vqlabel.verify(path)
    result = CliRunner().invoke(app, ["verify", str(path)])
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", f"vqlabel: {found.value}\n")


def test_a_sound_file_is_counted(vql: Path) -> None:
    assert vqlabel.verify(vql) == verify_bytes(vql)


def test_a_code_that_leaves_its_table_is_found_wherever_it_stands(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = vqlabel.fit(dump, FitConfig(codec="topk", slots=2))[0]
    encode = codec.encode

    def forged(labels: Tensor, context: object = None) -> Tensor:
        codes = encode(labels)
        codes[-1, 1] = 40  # of classes 0..39
        return codes

    monkeypatch.setattr(codec, "encode", forged)
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    monkeypatch.setattr("vqlabel.verifying.CODES_RECORDS", 100)
    refused(tmp_path / "a.vql", r"a\.vql: code 40 leaves 0\.\.39 .*damaged or forged")


def test_a_decoder_that_lacks_a_tensor_is_found(
    dump: Path, codec: LabelCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = codec.decoder_tensors()
    monkeypatch.setattr(
        codec, "decoder_tensors", lambda: {name: t for name, t in whole.items() if not name.startswith("decoder.out")}
    )
    vqlabel.pack(dump, tmp_path / "a.vql", codec=codec)
    refused(tmp_path / "a.vql", r"a\.vql: .*decoder\.out")
