"""Variable rate: the target rate, its effect on KL, and the file format."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import Forge
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import vqlabel
from vqlabel import FitConfig
from vqlabel.bitstream import ANS, FIXED, ZSTD, pack_fixed
from vqlabel.cli import app
from vqlabel.codecs import CODECS, LabelCodec, fit_codec
from vqlabel.codecs.at_config import at_config
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.fit.dataset_stats import DatasetStats
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.fit.rules import spread_slots
from vqlabel.codecs.vqae.sizes import codec_bytes, file_bytes
from vqlabel.container import ContainerReader
from vqlabel.container.writer import ContainerWriter
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels import open_labels
from vqlabel.report import account, stats
from vqlabel.vql.file import VqlFile
from vqlabel.workflows.sample import read_sample
from vqlabel.workflows.tune import tune
from vqlabel.workflows.tune_search import Trial

N, C, BITS = 3000, 40, 24
FIXED_RATE = FitConfig(codebook_size=16, temperature=(1.0,), gain=1.0, epochs=3)
VARIABLE_RATE = replace(FIXED_RATE, variable_rate=True, bits=BITS)


@pytest.fixture(scope="module")
def labels() -> NDArray[np.float16]:
    """[3000, 40]: three of five labels are nearly equal, the others differ widely."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, 6)) * np.where(rng.random(N) < 0.6, 0.1, 1)[:, None]
    return (1.5 * z @ rng.normal(size=(6, C)) + 0.1 * rng.normal(size=(N, C))).astype(np.float16)


@pytest.fixture(scope="module")
def uneven(labels: NDArray[np.float16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("variable") / "a.npy"
    np.save(path, labels)
    return path


@pytest.fixture(scope="module")
def fitted(uneven: Path) -> tuple[LabelCodec, dict[str, Any]]:
    return vqlabel.fit(uneven, VARIABLE_RATE)


@pytest.fixture(scope="module")
def packed(uneven: Path, fitted: tuple[LabelCodec, dict[str, Any]]) -> Path:
    vqlabel.pack(uneven, uneven.with_name("a.vql"), codec=fitted[0])
    return uneven.with_name("a.vql")


@pytest.fixture(scope="module")
def codes(labels: NDArray[np.float16], fitted: tuple[LabelCodec, dict[str, Any]]) -> NDArray[np.int32]:
    """[3000, 1 + m] counts and codes."""
    return fitted[0].encode(torch.from_numpy(labels)).numpy()


# The rate.


@pytest.mark.parametrize("options", [{}, {"bits": 9}, {"bits": 30, "slots": 20}, {"temperature": (1.0, 4.0, 20.0)}], ids=str)
def test_labels_have_the_target_bits_on_average_and_no_more(
    options: dict[str, Any], uneven: Path, labels: NDArray[np.float16]
) -> None:
    config = replace(VARIABLE_RATE, epochs=1, **options)
    codec = vqlabel.fit(uneven, config)[0]
    count = codec.encode(torch.from_numpy(labels))[:, 0].double()
    assert config.bits is not None
    assert 0.97 * config.bits <= 4 * float(count.mean()) <= config.bits
    assert codec.config.rate == config.bits and codec.config.price > 0
    assert int(count.max()) <= codec.config.slots == (config.slots or spread_slots(config.bits / 4))


def test_a_variable_rate_lowers_the_kl_at_equal_bits(uneven: Path, fitted: tuple[LabelCodec, dict[str, Any]]) -> None:
    """Held out: 28 bits at a fixed rate, 24 plus the counts at a variable one."""
    fixed, variable = vqlabel.fit(uneven, replace(FIXED_RATE, bits=28))[1], fitted[1]
    assert BITS < variable["code_bits"] <= fixed["code_bits"] == 28
    assert variable["held_out"]["kl_T1"] < 0.9 * fixed["held_out"]["kl_T1"]


def test_the_report_has_the_bits_and_perplexity_of_the_labels(
    uneven: Path, fitted: tuple[LabelCodec, dict[str, Any]], codes: NDArray[np.int32]
) -> None:
    codec, report = fitted
    assert report["code_bits"] == pytest.approx(codec.stored_bits(torch.from_numpy(codes)) / N, abs=0.1)
    assert report["config"]["variable"] is True and report["config"]["price"] == codec.config.price
    share = np.bincount(codes[codes[:, 0] > 1, 2]) / (codes[:, 0] > 1).sum()
    perplexity = np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())
    assert report["perplexity"][1] == pytest.approx(perplexity, rel=0.05)


def test_held_out_labels_represent_all_labels_outside_the_training_split(uneven: Path) -> None:
    """So that a dump much larger than the sample has the target rate."""
    sample = read_sample(open_labels(uneven))[0]
    easy = sample.train[sample.train.float().std(1).argsort()[:2000]]
    rates = []
    for total in (0, 1000 * N):
        split = replace(sample, train=easy, total=total)
        codec = fit_codec(split, replace(VARIABLE_RATE, codec="vqae", epochs=1))
        rates.append([4 * float(codec.encode(labels)[:, 0].double().mean()) for labels in (split.train, split.held_out)])
    (train, held_out), (train_of_large, held_out_of_large) = rates
    assert held_out > train > train_of_large and held_out > BITS
    assert 0.97 * BITS < held_out_of_large <= BITS


@pytest.mark.parametrize("bits", [8, 16, 64])
@pytest.mark.parametrize("budget", [200_000, 900_000])
def test_a_budget_includes_codes_and_counts(budget: int, bits: int) -> None:
    dump_stats = DatasetStats(
        labels=80_000, train_labels=70_000, classes=1000, domain="logits", images=2000, fields=("mix", "flip"), view=160
    )
    config = resolve(FitConfig(bytes=budget, variable_rate=True), dump_stats)
    assert 0.97 * budget <= file_bytes(config, dump_stats.labels) <= budget
    assert 0.3 * budget <= 10_000 * (config.rate + config.slots.bit_length()) <= 0.55 * budget
    if 10_000 * bits < 0.8 * budget:
        config = resolve(FitConfig(bytes=budget, variable_rate=True, bits=bits), dump_stats)
        assert config.rate == bits
        assert file_bytes(config, dump_stats.labels) >= 10_000 * bits + codec_bytes(config)


def test_a_file_is_within_its_budget(uneven: Path, tmp_path: Path) -> None:
    codec, report = vqlabel.fit(uneven, replace(VARIABLE_RATE, bits=None, bytes=22_000, codebook_size=None))
    size = vqlabel.pack(uneven, tmp_path / "a.vql", codec=codec)["bytes"]
    rows = stats(tmp_path / "a.vql")["rows"]
    order = sum(row["bytes"] for row in rows if row["group"] == "order")
    predicted = file_bytes(codec.config, N)
    assert 0.9 * 22_000 < size - order <= predicted <= 22_000
    assert report["config"]["variable"]


# The file.


def test_only_a_file_of_a_variable_rate_declares_it(packed: Path, vql: Path) -> None:
    reader = ContainerReader(packed)
    assert reader.metadata["vql.requires"] == '["variable_slots"]' and reader.requires == ["variable_slots"]
    assert {"counts", "codes"} < set(reader.streams)
    assert ContainerReader(vql).metadata["vql.requires"] == "[]" and "counts" not in ContainerReader(vql).streams
    assert "variable" not in VqlFile(vql).codec["config"]


def test_codes_are_stored_in_a_coding_that_the_codec_declares(
    uneven: Path,
    fitted: tuple[LabelCodec, dict[str, Any]],
    codes: NDArray[np.int32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VqaeConfig, "codings", (ANS,))
    vqlabel.pack(uneven, tmp_path / "a.vql", codec=fitted[0])
    file = VqlFile(tmp_path / "a.vql")
    assert {name: file.container.streams[name].coding.name == "ans" for name in ("codes", "counts")} == {
        "codes": True,
        "counts": False,
    }
    np.testing.assert_array_equal(file.codes(0, len(codes)), codes)


@pytest.mark.parametrize("chunk_rows", [8, 64, 4096])
def test_records_are_read_in_any_order(
    labels: NDArray[np.float16], fitted: tuple[LabelCodec, dict[str, Any]], chunk_rows: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """For several sizes of the chunks of counts and codes."""
    begin = ContainerWriter.begin
    monkeypatch.setattr(
        ContainerWriter,
        "begin",
        lambda self, name, bits, codings=(FIXED, ZSTD), chunk_rows=chunk_rows, c=chunk_rows: begin(self, name, bits, codings, c),
    )
    n, (codec, _) = 150, fitted
    codes = codec.encode(torch.from_numpy(labels[:n])).numpy()
    np.save(tmp_path / "a.npy", labels[:n])
    vqlabel.pack(tmp_path / "a.npy", tmp_path / "a.vql", codec=codec)
    rng, at = np.random.default_rng(0), [0, 7, 8, 65, n]
    for first in at:
        for stop in (stop for stop in at if stop >= first):
            assert np.array_equal(VqlFile(tmp_path / "a.vql").codes(first, stop), codes[first:stop])
    file = VqlFile(tmp_path / "a.vql")
    for index in (rng.integers(0, n, 100), np.arange(n)[::-1], np.array([5, 5, 5]), np.empty(0, np.int64)):
        assert np.array_equal(file.take_codes(index), codes[index])


def test_labels_decode_by_index_by_batch_and_through_a_loader(
    packed: Path, fitted: tuple[LabelCodec, dict[str, Any]], codes: NDArray[np.int32]
) -> None:
    dataset, whole = vqlabel.open(packed), fitted[0].decode(torch.from_numpy(codes))
    assert dataset.codes([3, 1]).dtype == torch.uint8
    for got, want in (
        (dataset[:], whole),
        (dataset[[2999, 0, 7]], whole[[2999, 0, 7]]),
        (dataset.decoder(dataset.codes(range(100)), dataset.context(range(100))), whole[:100]),
        (torch.cat([batch.labels for batch in dataset.batches()]), whole),
        (torch.cat(list(DataLoader(dataset, batch_size=500, num_workers=1))), whole),
    ):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_every_byte_is_accounted_for(packed: Path, codes: NDArray[np.int32]) -> None:
    figures, file = stats(packed), VqlFile(packed)
    rows = {row["part"]: row for row in figures["rows"]}
    assert sum(row["bytes"] for row in figures["rows"]) == figures["bytes"]["total"] == os.path.getsize(packed)
    assert rows["counts"]["group"] == rows["codes"]["group"] == "codes"
    assert rows["counts"]["bytes"] == file.container.stored("counts") > 0
    assert figures["code_bits"] == pytest.approx((4 * codes[:, 0].sum() + 8 * rows["counts"]["bytes"]) / N, abs=1e-3)
    assert len(figures["perplexity"]) == codes.shape[1] - 1
    for slot, perplexity in enumerate(figures["perplexity"]):
        share = np.bincount(codes[codes[:, 0] > slot, slot + 1]) / (codes[:, 0] > slot).sum()
        assert perplexity == pytest.approx(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()), abs=0.06)


def test_pack_reports_the_bits_of_its_file(uneven: Path, fitted: tuple[LabelCodec, dict[str, Any]], tmp_path: Path) -> None:
    sizes = vqlabel.pack(uneven, tmp_path / "a.vql", codec=fitted[0])
    assert sizes["records"] == N and sizes["code_bits"] == stats(tmp_path / "a.vql")["code_bits"]
    assert sizes["code_bits"] == pytest.approx(fitted[1]["code_bits"], abs=0.1)


def test_at_an_infinite_price_a_file_has_no_codes(fitted: tuple[LabelCodec, dict[str, Any]], tmp_path: Path) -> None:
    """A price of 1e9 per bit, above the loss of every label."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(20, C)).astype(np.float16))
    codec = CODECS["vqae"].codec.build(replace(fitted[0].config, price=1e9), fitted[0].decoder_tensors())
    assert vqlabel.pack(tmp_path / "a.npy", tmp_path / "a.vql", codec=codec)["records"] == 20
    vqlabel.verify(tmp_path / "a.vql")
    assert VqlFile(tmp_path / "a.vql").container.streams["codes"].rows == 0
    assert not VqlFile(tmp_path / "a.vql").codes(0, 20).any()
    assert vqlabel.open(tmp_path / "a.vql")[:].shape == (20, C)


# Refused inputs.


def test_a_variable_codec_has_one_rate(fitted: tuple[LabelCodec, dict[str, Any]]) -> None:
    codec = fitted[0]
    assert at_config(codec, FitConfig(bits=BITS)) is codec
    with pytest.raises(UsageError, match=r"bits is 12; it must be left out: this codec has a variable rate of 24 bits on average"):
        at_config(codec, FitConfig(bits=12))
    with pytest.raises(
        UsageError, match=r"slots is 3; it must be 12, the maximum: this codec has a variable rate of 24 bits on average"
    ):
        at_config(codec, FitConfig(slots=3))
    same = at_config(codec, FitConfig(slots=12))
    assert torch.equal(same.encode(torch.zeros(3, C)), codec.encode(torch.zeros(3, C)))
    with pytest.raises(UsageError, match="variable_rate is True; it only applies when a codec is fitted"):
        at_config(codec, FitConfig(variable_rate=True))


def test_more_bits_than_those_of_the_slots_are_refused(uneven: Path) -> None:
    with pytest.raises(
        UsageError, match=r"bits is 24; it must be at most 20, the bits of --slots 5: --bits is the average per label"
    ):
        vqlabel.fit(uneven, replace(VARIABLE_RATE, slots=5))


def test_an_interrupted_fit_has_the_bytes_of_an_uninterrupted_one(uneven: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int) -> Any:
        def tell(at: str, now: int, *_: Any) -> None:
            if (at, now) == (stage, done):
                raise KeyboardInterrupt

        return tell

    config = replace(VARIABLE_RATE, gain=None, epochs=2)
    vqlabel.fit(uneven, config, out=tmp_path / "whole.codec")
    for stop in [("decoder, round 1", 1), ("choosing codes", 1), ("decoder, round 2", 2)]:
        with pytest.raises(KeyboardInterrupt):
            vqlabel.fit(uneven, config, out=tmp_path / "a.codec", progress=interrupt(*stop))
    vqlabel.fit(uneven, config, out=tmp_path / "a.codec")
    assert (tmp_path / "a.codec").read_bytes() == (tmp_path / "whole.codec").read_bytes()


def forged(path: Path, target: Path, change: Any, requires: tuple[str, ...] = ("variable_slots",)) -> Path:
    """Rewrite the file with valid checksums after `change` altered (counts [n, 1], codes [s, 1])."""
    forge = Forge(path)
    streams = forge.rows("counts"), forge.rows("codes")
    for name, rows in zip(("counts", "codes"), change(*streams) or streams, strict=True):
        ((bits, _),) = forge.metadata["vql.streams"][name]["bits"]
        forge.put(name, rows, [bits] * rows.shape[1])
    forge.metadata["vql.requires"] = list(requires)
    return forge.write(target)


def increment_a_count(counts: NDArray[Any], codes: NDArray[Any]) -> None:
    counts[np.flatnonzero(counts[:, 0] < 12)[0]] += 1


FORGERIES = {
    "a count above the slots": (lambda counts, codes: counts.__setitem__(7, 13), "a label has 13 codes, the codec 12 slots; damaged or forged"),
    "a count too large": (increment_a_count, r"its counts add up to \d+ codes, the file has \d+; damaged or forged"),
    "a code missing": (lambda counts, codes: (counts, codes[:-1]), "its counts add up to"),
    "a code too many": (lambda counts, codes: (counts, np.pad(codes, ((0, 1), (0, 0)))), "its counts add up to"),
    "a label too many": (lambda counts, codes: (np.pad(counts, ((0, 1), (0, 0))), codes), "contain 3000 records, the header declares 3001"),
    "codes without counts": (lambda counts, codes: (counts[:0], codes), "contain 3000 records"),
    "two fields of counts": (lambda counts, codes: (np.repeat(counts, 2, 1), codes), "counts of 2 x 4 bits, the codec's are 1 x 4"),
    "two fields of codes": (lambda counts, codes: (counts, np.repeat(codes, 2, 1)), "codes of 2 x 4 bits, the codec's are 1 x 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGERIES)
def test_streams_that_contradict_each_other_are_refused(packed: Path, tmp_path: Path, case: str) -> None:
    change, message = FORGERIES[case]
    path = forged(packed, tmp_path / "a.vql", change)
    for read in (
        vqlabel.verify,
        lambda path: VqlFile(path).codes(0, 8),
        lambda path: VqlFile(path).take_codes(np.array([7])),
        lambda path: vqlabel.open(path)[7],
    ):
        with pytest.raises(BadContainer, match=message) as refusal:
            read(path)
        assert str(path) in str(refusal.value)


def test_header_and_codec_must_agree_on_the_variable_rate(packed: Path, tmp_path: Path, vql: Path) -> None:
    path = forged(packed, tmp_path / "a.vql", lambda *_: None)
    assert torch.equal(vqlabel.open(path)[:], vqlabel.open(packed)[:])
    path = forged(packed, tmp_path / "b.vql", lambda *_: None, requires=())
    with pytest.raises(BadContainer, match=r"vql\.requires is \[\], the codec's slots are variable; damaged or forged"):
        VqlFile(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 1024000}, "slots is 1024000"),
        ({"variable": False}, "rate and price is .* must be 0 at a fixed rate"),
        ({"rate": 0}, "rate is 0"),
    ],
)
def test_a_forged_configuration_is_refused(packed: Path, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    forge = Forge(packed)
    forge.metadata["vql.codec"]["config"].update(changes)
    with pytest.raises(BadContainer, match=message):
        vqlabel.verify(forge.write(tmp_path / "a.vql"))


def test_a_code_beyond_its_codebook_is_refused(tmp_path: Path) -> None:
    """k is not a power of two, so that the code fits into its bits."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(30, 8)).astype(np.float16))
    config = VqaeConfig(
        classes=8, domain="logits", slots=3, codebook_size=5, latent=2, code_width=2, quantizer="residual", weight_bits=8, prior=None,
        temperature=(1.0,), variable=True, rate=6.0, price=0.0,
    )  # fmt: skip
    codec = CODECS["vqae"].codec(config)
    for weight in codec.parameters():
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(weight)))
    vqlabel.pack(tmp_path / "a.npy", tmp_path / "a.vql", codec=codec.requires_grad_(False))
    vqlabel.verify(tmp_path / "a.vql")
    path = forged(tmp_path / "a.vql", tmp_path / "b.vql", lambda counts, codes: codes.__setitem__(-1, 7))
    with pytest.raises(BadContainer, match=r"code 7 is outside 0\.\.4"):
        vqlabel.verify(path)


def test_stored_bits_of_counts_are_those_of_the_file(
    packed: Path, codes: NDArray[np.int32], fitted: tuple[LabelCodec, dict[str, Any]]
) -> None:
    counts, file = codes[:, :1].astype(np.uint32), VqlFile(packed)
    assert fitted[0].stored_bits(torch.from_numpy(codes)) == 4 * counts.sum() + 8 * file.container.stored("counts")
    assert file.container.stored("counts") <= len(pack_fixed(counts, [4]))


@pytest.mark.parametrize(("temperature", "budget"), [("1", 90_000), ("1,4,20", 90_000)])
def test_a_file_with_all_columns_and_tensors_is_within_its_budget(
    tree: Path, tmp_path: Path, temperature: str, budget: int
) -> None:
    out = tmp_path / "a.vql"
    command = ["pack", str(tree), "-o", str(out), "--bytes", str(budget), "--temperature", temperature, "--prior", "--epochs", "1"]
    result = CliRunner().invoke(app, [*command, "--variable-rate"])
    assert result.exit_code == 0, result.stderr
    assert "code bits each" in result.stdout and VqlFile(out).counted
    assert VqlFile(out).codec["config"]["lift"], "the budget leaves no tail gain, so a tensor is missing"
    size = account(VqlFile(out)).bytes
    assert size["codes"] + size["codec"] + size["container"] <= budget


def test_tune_tries_several_variable_rates(uneven: Path, tmp_path: Path) -> None:
    trials = list[Trial]()
    config = replace(VARIABLE_RATE, bits=None, epochs=1, bytes=22_000, gain=None, weight_bits=4, prior=False)
    codec, report = tune(uneven, config, minutes=9, on_trial=trials.append)
    assert len({trial.resolved.rate for trial in trials}) > 1 and all(trial.resolved.variable for trial in trials)
    assert max(trial.bytes for trial in trials) <= report["budget"] == 22_000
    vqlabel.pack(uneven, tmp_path / "a.vql", codec=codec)
    size = account(VqlFile(tmp_path / "a.vql")).bytes
    assert size["total"] - size["order"] <= 22_000
