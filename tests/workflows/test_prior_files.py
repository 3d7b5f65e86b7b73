"""Files whose codec has a prior: pack, unpack and a training loop, forged files, and labels without codes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import Forge
from torch import Tensor
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig, LabelBatch, container
from vqlabel.bitstream import pack_fixed
from vqlabel.cli import app
from vqlabel.codecs import LabelCodec
from vqlabel.codecs.vqae.config import CONTEXT_FIELDS
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import Context, open_labels
from vqlabel.vql.file import VqlFile


@pytest.fixture(scope="module")
def context(batches: list[LabelBatch]) -> Context:
    return Context.join([batch.context() for batch in batches])


@pytest.fixture
def decoded(batches: list[LabelBatch], context: Context, prior_codec: LabelCodec) -> Tensor:
    """[360, 40] the labels of the tree, encoded and decoded without a file."""
    raw = torch.from_numpy(np.concatenate([batch.labels for batch in batches]))
    with torch.no_grad():
        return prior_codec.decode(prior_codec.encode(raw, context), context)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_prior_of_a_tree_uses_all_columns_of_the_tree(prior_vql: Path) -> None:
    prior = VqlFile(prior_vql).codec["config"]["prior"]
    assert prior["fields"] == list(CONTEXT_FIELDS)
    assert prior["images"] == 60


def test_decoded_labels_are_those_of_codes_and_context(prior_vql: Path, decoded: Tensor, tmp_path: Path, tree: Path) -> None:
    dataset = vqlabel.open(prior_vql)
    same(dataset[:], decoded)
    vqlabel.unpack(prior_vql, tmp_path / "a.npy", dtype="f32")
    same(torch.from_numpy(np.load(tmp_path / "a.npy")), decoded)
    vqlabel.unpack(prior_vql, tmp_path / "part.npy", dtype="f32", records=(100, 201))
    same(torch.from_numpy(np.load(tmp_path / "part.npy")), decoded[100:201])
    vqlabel.unpack(prior_vql, tmp_path / "tree")
    back = np.concatenate([batch.labels for batch in open_labels(tmp_path / "tree")])
    torch.testing.assert_close(torch.from_numpy(back).float(), decoded, atol=0.02, rtol=2e-3)
    figures = vqlabel.stats(prior_vql, against=tree)["distortion"]
    assert 0 < figures["relative_mse"] < 0.8


def test_records_in_any_order_are_decoded_like_those_in_order(prior_vql: Path, decoded: Tensor) -> None:
    dataset = vqlabel.open(prior_vql)
    at = np.random.default_rng(0).permutation(360)
    same(dataset[at], decoded[at])
    same(dataset[17], decoded[17])
    same(torch.stack(dataset.__getitems__([300, 2, -1])), decoded[[300, 2, -1]])
    done = 0
    for batch in dataset.batches():
        same(batch.labels, decoded[done : done + len(batch.labels)])
        done += len(batch.labels)
    assert done == 360


def test_codes_are_decoded_with_their_context_and_not_without(prior_vql: Path, decoded: Tensor) -> None:
    dataset, at = vqlabel.open(prior_vql), [5, 200, 7]
    same(dataset.decoder(dataset.codes(at), dataset.context(at)), decoded[at])
    with pytest.raises(
        UsageError, match=r"the codec's prior needs the records' context, and got none; pass it, such as dataset\.context"
    ):
        dataset.decoder(dataset.codes(at))


def test_another_context_gives_other_labels(prior_vql: Path, decoded: Tensor) -> None:
    """The context of other images gives other labels, so the prior has an effect."""
    dataset = vqlabel.open(prior_vql)
    with torch.no_grad():
        other = dataset.decoder(dataset.codes(range(360)), dataset.context([*range(180, 360), *range(180)]))
    assert float((other - decoded).square().mean()) > 0.2 * float(decoded.square().mean())


def test_the_account_has_the_prior(prior_vql: Path) -> None:
    file, result = VqlFile(prior_vql), vqlabel.stats(prior_vql)
    size = {name: section.stop - section.start for name, section in file.container.sections.items()}
    assert result["bytes"]["codec"] == sum(bytes for name, bytes in size.items() if name.startswith("codec."))
    assert size["codec.decoder.prior.images"] == 60 * 4 * 4 // 8  # 60 images of 4 numbers of 4 bits
    assert size["codec.decoder.prior.mixed.weight"] == -(-file.codec["config"]["latent"] * 4 * 6 // 8)
    assert sum(row["bytes"] for row in result["rows"]) == prior_vql.stat().st_size


def test_a_dump_with_images_unknown_to_the_prior_is_refused_before_anything_is_written(
    dump: Path, tree: Path, prior_codec: LabelCodec, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"the codec's prior needs mix, crop, flip, .* of every record, and these have none; fit on this"
    ):
        vqlabel.pack(dump, tmp_path / "a.vql", codec=prior_codec)
    np.save(tmp_path / "more.npy", np.concatenate([np.load(dump)] * 2, 1))
    codec = vqlabel.fit(dump, FitConfig(bits=3, codebook_size=8, prior=True, epochs=1))[0]
    vqlabel.pack(tree, tmp_path / "tree.vql", codec=codec)  # the tree has more columns than the prior needs
    with pytest.raises(
        UsageError, match="image 119 is unknown to the codec's prior, which has 60; fit on this dump, or with --no-prior"
    ):
        vqlabel.pack(tmp_path / "more.npy", tmp_path / "a.vql", codec=codec)
    assert not (tmp_path / "a.vql").exists()


def test_a_codec_is_fitted_for_a_temperature_of_1_unless_another_is_given(tree: Path, dump: Path) -> None:
    quick = FitConfig(bits=3, codebook_size=8, prior=False, epochs=0)
    for labels in (tree, dump):
        codec, report = vqlabel.fit(labels, quick)
        assert codec.config.temperatures == report["fit"]["temperature"] == (1.0,) and report["temperature_auto"]
    report = vqlabel.fit(tree, FitConfig(**{**quick.to_dict(), "temperature": (2.0,)}))[1]
    assert report["config"]["temperature"] == report["fit"]["temperature"] == (2.0,) and not report["temperature_auto"]


# Forged.


def refused(path: Path, message: str) -> None:
    """Everything that decodes labels refuses the file, with exit code 3; the container itself is valid."""
    container.verify(path)
    dataset = vqlabel.open(path)
    for read in (lambda: dataset[:], lambda: dataset[359], lambda: list(dataset.batches())):
        with pytest.raises(BadContainer, match=rf"{path.name}: {message}.*; damaged or forged"):
            read()
    for command in (["verify", str(path)], ["unpack", str(path), "-o", str(path.with_suffix(".npy"))]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 3, result.output
    assert not path.with_suffix(".npy").exists()


def test_an_image_unknown_to_the_prior_is_refused(prior_vql: Path, tmp_path: Path) -> None:
    forge, file = Forge(prior_vql), VqlFile(prior_vql)
    stream = file.container.streams["columns.image"]
    assert (stream.coding.name, stream.bits) == ("fixed", (6,))
    images = file.container.rows("columns.image").copy()
    images[-16:] = 60
    forge.chunk("columns.image", pack_fixed(images, [6]))
    refused(forge.write(tmp_path / "forged.vql"), "image 60 is unknown to the codec's prior, which has 60")


def test_a_missing_column_that_the_prior_needs_is_refused(prior_vql: Path, tmp_path: Path) -> None:
    forge = Forge(prior_vql)
    forge.metadata["vql.columns"]["order"] = "none"
    for name in ("columns.flip", "columns.image"):
        del forge.metadata["vql.streams"][name]
    refused(forge.write(tmp_path / "forged.vql"), "the codec's prior needs image of every record")


def test_a_lambda_of_nan_is_refused(prior_vql: Path, tmp_path: Path) -> None:
    forge, file = Forge(prior_vql), VqlFile(prior_vql)
    stream, rows = file.container.streams["columns.mix_lam"], file.container.rows("columns.mix_lam").astype(np.uint32)
    rows[-1] = np.array([np.nan]).view("<u4")
    assert sum(stream.bits) >= 62 and stream.coding.name == "fixed"
    forge.metadata["vql.streams"]["columns.mix_lam"]["bits"] = [[32, 2]]
    forge.chunk("columns.mix_lam", pack_fixed(rows, [32, 32]), raw=8 * len(rows))
    refused(forge.write(tmp_path / "forged.vql"), "a lambda or a crop of these records is NaN or Inf")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "images": ({"images": 61}, "codec tensor 'decoder.prior.images' has shape"),
    "fewer images": ({"images": 40}, "codec tensor 'decoder.prior.images' has shape"),
    "hidden": ({"hidden": 9}, "codec tensor 'decoder.prior.inside.* has shape"),
    "fields": ({"fields": ["mix", "crop"]}, "codec tensor 'decoder.prior.inside.* has shape"),
    "a field twice": ({"fields": ["mix", "mix"]}, "stored PriorConfig: fields is"),
    "no view": ({"view": 0}, "stored PriorConfig: view is 0"),
    "a boolean": ({"hidden": True}, "hidden is True .*; it must be a whole number"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_prior_that_does_not_fit_its_tensors_is_refused(case: str, prior_vql: Path, tmp_path: Path) -> None:
    forge, (changes, message) = Forge(prior_vql), CHANGES[case]
    forge.metadata["vql.codec"]["config"]["prior"].update(changes)
    with pytest.raises(BadContainer, match=message):
        vqlabel.open(forge.write(tmp_path / "forged.vql"))[:]


@pytest.mark.parametrize("dtype", ["I8", "F16"])
def test_packed_weights_in_another_type_are_refused(dtype: str, prior_vql: Path, tmp_path: Path) -> None:
    forge = Forge(prior_vql)
    tensor = forge.header["codec.decoder.prior.images"]
    assert tensor["dtype"] == "U8"
    tensor["dtype"], tensor["shape"] = dtype, [tensor["shape"][0] // (2 if dtype == "F16" else 1)]
    with pytest.raises(
        BadContainer, match=r"codec tensor 'decoder\.prior\.images' (has dtype torch\.int8|has shape)|begins at byte|in \d+ bytes"
    ):
        vqlabel.open(forge.write(tmp_path / "forged.vql"))[:]


def test_packed_weights_of_another_length_are_refused(prior_vql: Path, tmp_path: Path) -> None:
    forge = Forge(prior_vql)
    forge.metadata["vql.codec"]["config"]["weight_bits"] = 5
    with pytest.raises(BadContainer, match=r"codec tensor 'decoder.* has shape"):
        vqlabel.open(forge.write(tmp_path / "forged.vql"))[:]


# Labels of no codes.


@pytest.fixture(scope="module")
def alone(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, packed with a prior and no codes."""
    path = tmp_path_factory.mktemp("alone") / "alone.vql"
    codec = vqlabel.fit(tree, FitConfig(bits=0, image_width=4, hidden=8, epochs=20, gain=1.0))[0]
    result = vqlabel.pack(tree, path, codec=codec)
    assert (result["records"], result["code_bits"]) == (360, 0)
    return path


def test_labels_without_codes_take_one_bit_and_decode_to_the_prior(alone: Path, tree: Path, tmp_path: Path) -> None:
    assert vqlabel.verify(alone)["bytes"] == alone.stat().st_size
    file = VqlFile(alone)
    assert (file.records, file.code_bits) == (360, ())
    assert file.container.streams["codes"].bits == (1,)
    assert file.container.stored("codes") <= 45
    assert file.codes(0, 360).shape == (360, 0)
    dataset = vqlabel.open(alone)
    assert dataset.codes([4, 2]).shape == (2, 0)
    assert dataset[:].shape == (360, 40)
    same(dataset[[300, 7]], dataset[:][[300, 7]])
    vqlabel.unpack(alone, tmp_path / "back")
    assert len(open_labels(tmp_path / "back").places) == 24
    assert vqlabel.stats(alone, against=tree)["distortion"]["relative_mse"] < 0.8


def test_the_account_of_labels_without_codes_adds_up(alone: Path) -> None:
    result = vqlabel.stats(alone, teacher_bytes=5000)
    assert sum(row["bytes"] for row in result["rows"]) == alone.stat().st_size
    assert result["code_bits"] == 0
    assert result["perplexity"] == []
    assert result["bits_per_label"]["codes"] <= 1
    for command in ("stats", "info", "verify"):
        result = CliRunner().invoke(app, [command, str(alone)])
        assert result.exit_code == 0, result.output
    assert json.loads(CliRunner().invoke(app, ["stats", str(alone), "--json"]).stdout) == vqlabel.stats(alone)


def test_the_bit_of_a_label_without_codes_must_be_zero(alone: Path, tmp_path: Path) -> None:
    forge = Forge(alone)
    bits = np.zeros((360, 1), np.uint32)
    bits[200] = 1
    forge.metadata["vql.streams"]["codes"]["coding"] = "fixed"
    forge.chunk("codes", pack_fixed(bits, [1]), raw=45)
    path = forge.write(tmp_path / "forged.vql")
    with pytest.raises(BadContainer, match=r"code 1 is outside 0\.\.0"):
        vqlabel.open(path)[:]


def test_no_slots_with_codes_and_codes_without_slots_are_refused(alone: Path, prior_vql: Path, tmp_path: Path) -> None:
    forge = Forge(prior_vql)
    forge.metadata["vql.codec"]["config"]["slots"] = 0
    with pytest.raises(BadContainer, match=r"codes of|has shape"):
        vqlabel.open(forge.write(tmp_path / "a.vql"))[:]
    forge = Forge(alone)
    forge.metadata["vql.codec"]["config"]["slots"] = 1
    with pytest.raises(BadContainer, match=r"the codec has no tensor 'decoder\.codebook"):
        vqlabel.open(forge.write(tmp_path / "b.vql"))[:]
