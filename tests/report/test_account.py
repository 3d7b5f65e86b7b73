"""Account of a `.vql`: its bytes by part, bits per label by hand, distortion as computed without a file, plots."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import vqlabel
from vqlabel import FitConfig
from vqlabel.codecs import LabelCodec
from vqlabel.errors import MissingExtra, TargetExists, UsageError
from vqlabel.labels import open_labels
from vqlabel.metrics.calibration import Calibration
from vqlabel.metrics.distortion import Distortion
from vqlabel.report import account, stats
from vqlabel.report.against import distortion_against
from vqlabel.vql.file import VqlFile

GROUPS = ("codes", "codec", "augmentation", "order", "container")


@pytest.fixture(scope="module", params=["tree", "array", "rows without images", "top-k", "raw", "grouped probs"])
def packed(
    request: pytest.FixtureRequest,
    tree: Path,
    dump: Path,
    logits: NDArray[np.float16],
    probs: NDArray[np.float16],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A `.vql` of every codec, with and without columns."""
    folder = tmp_path_factory.mktemp("packed")
    np.save(folder / "plain.npy", logits.reshape(-1, 40))
    np.save(folder / "probs.npy", probs)
    source, options = {
        "tree": (open_labels(tree), {}),
        "array": (open_labels(dump), {}),
        "rows without images": (open_labels(folder / "plain.npy"), {}),
        "top-k": (open_labels(tree), {"codec": "topk"}),
        "raw": (open_labels(dump), {"codec": "raw"}),
        "grouped probs": (open_labels(folder / "probs.npy", domain="probs"), {"code_width": 2}),
    }[request.param]
    vqlabel.pack(source, folder / "a.vql", codec=vqlabel.fit(source, FitConfig(**{"bits": 64, "epochs": 1, **options}))[0])
    return folder / "a.vql"


def sections(path: Path) -> dict[str, int]:
    """Bytes of every tensor, read without vqlabel."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: np.diff(value["data_offsets"])[0] for name, value in header.items() if name != "__metadata__"}


def test_the_rows_sum_to_the_file_size(packed: Path) -> None:
    result = stats(packed)
    assert sum(row["bytes"] for row in result["rows"]) == result["bytes"]["total"] == packed.stat().st_size
    assert all(row["bytes"] >= 0 and row["grows"] in ("per label", "fixed") and row["group"] in GROUPS for row in result["rows"])
    assert list(result["bytes"]) == [*GROUPS, "total"]
    for group in GROUPS:
        assert result["bytes"][group] == sum(row["bytes"] for row in result["rows"] if row["group"] == group)
    assert len({row["part"] for row in result["rows"]}) == len(result["rows"])


def test_every_row_has_the_bytes_of_its_tensors(packed: Path) -> None:
    result, size = {row["part"]: row["bytes"] for row in stats(packed)["rows"]}, sections(packed)
    decoder = sum(bytes for name, bytes in size.items() if name.startswith("codec."))
    assert result["codebook"] + result["decoder"] + result.get("image vectors", 0) == decoder
    assert (decoder > 0) == (VqlFile(packed).codec["kind"] == "vqae")
    assert result["chunk tables"] == size["codes.chunks"]
    assert size["codes"] - 64 < result["codes"] <= size["codes"]
    columns = {
        name.removeprefix("columns."): bytes + size[name + ".chunks"]
        for name, bytes in size.items()
        if name.startswith("columns.") and not name.endswith(".chunks")
    }
    assert set(columns) == set(result) - {
        "codes",
        "codebook",
        "decoder",
        "image vectors",
        "chunk tables",
        "header and seal",
        "padding",
    }
    assert all(result[name] == bytes for name, bytes in columns.items()), "a column includes its padding and its chunk table"


def test_bits_per_label_are_bytes_divided_by_records(packed: Path) -> None:
    result = stats(packed)
    size, bits = result["bytes"], result["bits_per_label"]
    assert result["records"] == 360
    assert result["classes"] == 40
    assert bits["all_in"] == pytest.approx(8 * packed.stat().st_size / 360)
    assert bits["labels"] == pytest.approx(8 * (size["codes"] + size["codec"] + size["container"]) / 360)
    assert bits["codes"] == pytest.approx(8 * size["codes"] / 360)
    assert result["ratio_to_fp16"] == pytest.approx({name: 16 * 40 / bits[name] for name in ("labels", "all_in")})


def test_stats_is_a_json_object_with_the_published_keys(packed: Path) -> None:
    result = stats(packed, teacher_bytes=1000)
    assert json.loads(json.dumps(result)) == result
    assert {"records", "classes", "bytes", "bits_per_label"} <= set(result)
    assert set(result["bytes"]) == {"codes", "codec", "augmentation", "order", "container", "total"}
    assert set(result["bits_per_label"]) == {"codes", "labels", "all_in"}
    assert set(result["teacher"]) == {"teacher_bytes", "break_even_labels", "smaller"}
    assert "distortion" not in result


def test_every_part_has_its_group(vql: Path) -> None:
    group = {row["part"]: row["group"] for row in stats(vql)["rows"]}
    assert group == {
        "codes": "codes",
        "codebook": "codec",
        "decoder": "codec",
        "crop": "augmentation",
        "flip": "augmentation",
        "image_size": "augmentation",
        "mix_box": "augmentation",
        "mix_index": "augmentation",
        "mix_lam": "augmentation",
        "batch": "order",
        "image": "order",
        "chunk tables": "container",
        "header and seal": "container",
        "padding": "container",
    }


def test_bits_per_label_at_300_views_by_hand(vql: Path) -> None:
    """60 images: fixed parts are divided by 18,000 labels instead of 360."""
    rows = {row["part"]: row["bytes"] for row in stats(vql)["rows"]}
    fixed_labels = rows["codebook"] + rows["decoder"] + rows["header and seal"] + rows["padding"]
    growing_labels = rows["codes"] + rows["chunk tables"]
    fixed_all = fixed_labels + rows["image_size"]
    growing_all = growing_labels + sum(rows[name] for name in ("crop", "flip", "mix_box", "mix_index", "mix_lam", "batch", "image"))
    assert fixed_all + growing_all == vql.stat().st_size
    result = stats(vql)
    assert result["images"] == 60
    assert result["bits_per_label_at_300_views"] == pytest.approx(
        {
            "labels": 8 * fixed_labels / 18_000 + 8 * growing_labels / 360,
            "all_in": 8 * fixed_all / 18_000 + 8 * growing_all / 360,
        }
    )
    here = account(VqlFile(vql)).bits_per_label_at(6)
    assert here == pytest.approx({name: result["bits_per_label"][name] for name in ("labels", "all_in")}), "the file has 6 views"


def test_bits_per_label_fall_with_the_number_of_views(packed: Path) -> None:
    result = account(VqlFile(packed))
    if result.images is None:
        assert VqlFile(packed).columns.order == "none"
        assert result.bits_per_label_at() is None
        assert stats(packed)["bits_per_label_at_300_views"] is None
        return
    bits = [result.bits_per_label_at(views) for views in (1, 6, 300, 10**9)]
    for name in ("labels", "all_in"):
        assert [b[name] for b in bits] == sorted((b[name] for b in bits), reverse=True)
    assert bits[-1]["labels"] >= result.bits_per_label()["codes"]


def test_perplexity_is_that_of_the_codes_and_only_vqae_has_one(packed: Path) -> None:
    result, file = stats(packed), VqlFile(packed)
    if file.codec["kind"] != "vqae":
        assert result["perplexity"] is result["codebook_size"] is None
        return
    codes = file.codes(0, 360)
    for slot, perplexity in enumerate(result["perplexity"]):
        share = np.bincount(codes[:, slot]) / 360
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        assert perplexity == pytest.approx(np.exp(entropy), abs=0.06)
    assert len(result["perplexity"]) == codes.shape[1]


@pytest.mark.parametrize("factor", [0.2, 0.99, 1.01, 3])
def test_at_the_break_even_the_labels_are_as_large_as_the_teacher(factor: float, vql: Path) -> None:
    size = vql.stat().st_size
    teacher = int(factor * size)
    result = stats(vql, teacher_bytes=teacher)
    growing = sum(row["bytes"] for row in result["rows"] if row["grows"] == "per label") / 360
    fixed = sum(row["bytes"] for row in result["rows"] if row["grows"] == "fixed")
    labels = result["teacher"]["break_even_labels"]
    assert result["teacher"]["teacher_bytes"] == teacher
    if teacher < fixed:
        assert labels == 0
    else:
        assert fixed + growing * labels <= teacher + 1e-6 < fixed + growing * (labels + 1)
    assert result["teacher"]["smaller"] == ("labels" if size <= teacher else "teacher")
    assert (labels >= 360) == (result["teacher"]["smaller"] == "labels")


def test_distortion_against_the_dump_equals_that_of_encode_and_decode(vql: Path, tree: Path, codec: LabelCodec) -> None:
    raw = torch.from_numpy(np.concatenate([batch.labels for batch in open_labels(tree)]))
    figures = Distortion()
    with torch.no_grad():
        figures.add(raw, codec.decode(codec.encode(raw)))
    steps: list[int] = []
    result = stats(vql, against=tree, progress=lambda _stage, done, *_: steps.append(done))["distortion"]
    assert result == pytest.approx(figures.figures(), rel=1e-3)
    assert set(result) == {"kl_T1", "kl_T4", "kl_T20", "relative_mse", "mse", "top1_agreement"}
    assert steps == list(range(1, 25))


def test_distortion_is_that_of_labels_in_the_dumps_dtype_and_that_of_float32_labels_is_added_if_it_differs(
    logits: NDArray[np.float16], vql: Path, tree: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "dump.npy", 4 * logits)
    vqlabel.pack(tmp_path / "dump.npy", tmp_path / "a.vql", codec=vqlabel.fit(tmp_path / "dump.npy", FitConfig(codec="raw"))[0])
    file = VqlFile(tmp_path / "a.vql")
    file.label = {**file.label, "dtype": "BF16"}  # has 3 mantissa bits fewer than these labels
    result, figures = distortion_against(file, tmp_path / "dump.npy"), Distortion()
    raw = torch.from_numpy(4 * logits).flatten(0, 1)
    figures.add(raw, raw.bfloat16())
    assert result["distortion"] == pytest.approx(figures.figures(), rel=1e-3, abs=1e-6)
    assert result["distortion"]["mse"] > 1e-4
    assert result["distortion_f32"]["mse"] == 0
    assert "distortion_f32" not in stats(vql, against=tree)


def test_distortion_of_raw_labels_is_zero(dump: Path, tmp_path: Path) -> None:
    vqlabel.pack(dump, tmp_path / "a.vql", codec=vqlabel.fit(dump, FitConfig(codec="raw"))[0])
    result = stats(tmp_path / "a.vql", against=dump)["distortion"]
    assert result == pytest.approx(
        {"kl_T1": 0, "kl_T4": 0, "kl_T20": 0, "relative_mse": 0, "mse": 0, "top1_agreement": 1}, abs=1e-6
    )


def test_calibration_against_the_dump_equals_that_of_encode_and_decode(vql: Path, tree: Path) -> None:
    raw = torch.from_numpy(np.concatenate([batch.labels for batch in open_labels(tree)]))
    expected = Calibration(temperatures=(1.0, 4.0, 20.0))
    expected.add(raw, vqlabel.open(vql)[:].half())  # as unpack writes them
    result = stats(vql, against=tree)["calibration"]
    assert list(result) == ["T1", "T4", "T20"], "the temperatures that the codec was fitted for"
    for name, whole in expected.figures().items():
        assert list(result[name]) == ["temperature", "slope", "intercept", "ece", "relative_ece", "entropy", "bins"]
        for key in ("temperature", "slope", "intercept", "ece", "relative_ece", "entropy"):
            assert result[name][key] == pytest.approx(whole[key], rel=1e-4)
        assert [b["labels"] for b in result[name]["bins"]] == [b["labels"] for b in whole["bins"]]
        assert sum(b["labels"] for b in result[name]["bins"]) == 360
        assert list(result[name]["bins"][3]) == ["labels", "confidence", "raw"]


@pytest.mark.parametrize("domain", ["logits", "probs"])
def test_raw_labels_are_calibrated_and_measured_at_temperature_1(
    domain: str, logits: NDArray[np.float16], probs: NDArray[np.float16], tmp_path: Path
) -> None:
    np.save(tmp_path / "dump.npy", logits if domain == "logits" else probs)
    source = open_labels(tmp_path / "dump.npy", domain=domain)
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    result = stats(tmp_path / "a.vql", against=source)
    assert result["same_dump"] is True
    assert list(result["calibration"]) == ["T1"]
    assert result["calibration"]["T1"]["slope"] == pytest.approx(1, abs=1e-6)
    assert result["calibration"]["T1"]["ece"] == pytest.approx(0, abs=1e-6)


def test_other_labels_of_the_same_shape_are_compared_and_reported_as_another_dump(
    dump: Path, logits: NDArray[np.float16], tmp_path: Path
) -> None:
    vqlabel.pack(dump, tmp_path / "a.vql", codec=vqlabel.fit(dump, FitConfig(codec="raw"))[0])
    other = logits.copy()
    other[5, 59, 39] += 1
    np.save(tmp_path / "other.npy", other)
    np.savez(tmp_path / "same.npz", logits)
    assert stats(tmp_path / "a.vql", against=dump)["same_dump"] is True
    assert stats(tmp_path / "a.vql", against=tmp_path / "same.npz")["same_dump"] is True, "the same labels in another file"
    result = stats(tmp_path / "a.vql", against=tmp_path / "other.npy")
    assert result["same_dump"] is False
    assert result["distortion"]["kl_T1"] > 0
    assert "same_dump" not in stats(tmp_path / "a.vql")


def test_a_file_that_does_not_record_its_dump_can_be_compared(vql: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = VqlFile(vql)
    monkeypatch.setattr(file, "source", {"layout": "sre2l"})
    assert distortion_against(file, tree)["same_dump"] is None


def test_a_dump_that_does_not_record_its_domain_is_read_with_that_of_the_file(probs: NDArray[np.float16], tmp_path: Path) -> None:
    np.save(tmp_path / "probs.npy", probs)
    source = open_labels(tmp_path / "probs.npy", domain="probs")
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(bits=64, epochs=1))[0])
    by_path, by_source = (stats(tmp_path / "a.vql", against=dump)["distortion"] for dump in (tmp_path / "probs.npy", source))
    assert by_path == by_source
    assert 0 < by_path["kl_T1"] < 1


def test_a_dump_of_another_shape_or_domain_is_refused(
    vql: Path, dump: Path, logits: NDArray[np.float16], probs: NDArray[np.float16], tmp_path: Path
) -> None:
    for name, labels in (
        ("wide", np.concatenate([logits, logits], 2)),
        ("short", logits[:3]),
        ("long", np.concatenate([logits, logits])),
    ):
        np.save(tmp_path / f"{name}.npy", labels)
    np.save(tmp_path / "probs.npy", probs)
    for name, message in (
        ("wide", r"wide\.npy has 80 classes, .*small\.vql has 40: not the dump it was packed from"),
        ("short", r"short\.npy has 180 records, .*small\.vql has 360: not the dump it was packed from"),
        ("long", r"long\.npy has more than the 360 records of .*small\.vql: not the dump it was packed from"),
    ):
        with pytest.raises(UsageError, match=message):
            stats(vql, against=tmp_path / f"{name}.npy")
    with pytest.raises(
        UsageError, match=r"probs\.npy has probs labels, .*small\.vql has logits labels: not the dump it was packed from"
    ):
        stats(vql, against=open_labels(tmp_path / "probs.npy", domain="probs"))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_has_the_format_that_its_suffix_names(suffix: str, packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from vqlabel.report.plots import plot_account

    out = tmp_path / f"bits{suffix}"
    plot_account(stats(packed), out)
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG\r\n") if suffix == ".png" else b"<svg" in data
    assert len(data) > 2000


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_calibration_plot_has_a_panel_for_every_temperature(suffix: str, vql: Path, tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from vqlabel.report.plots import plot_calibration

    result, out = stats(vql, against=tree), tmp_path / f"a{suffix}"
    plot_calibration(result, out)
    data = out.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG\r\n")
    else:
        assert [f"T = {t}: slope" in data.decode() for t in (1, 4, 20)] == [True] * 3  # the title is a comment there
    with pytest.raises(TargetExists, match=r"exists; pass --overwrite"):
        plot_calibration(result, out)
    plot_calibration(result, out, overwrite=True)
    with pytest.raises(UsageError, match=r"no calibration to draw; name a dump \(--against\)"):
        plot_calibration(stats(vql), out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_interrupted_plot_leaves_the_existing_file(
    vql: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from matplotlib.figure import Figure

    from vqlabel.report.plots import plot_account, plot_calibration

    def half(_self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", half)
    (tmp_path / "a.png").write_bytes(b"precious")
    for plot in (plot_account, plot_calibration):
        with pytest.raises(KeyboardInterrupt):
            plot(stats(vql, against=tree), tmp_path / "a.png", overwrite=True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"precious")]


def test_a_plot_of_an_unknown_format_is_refused(vql: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from vqlabel.report.plots import plot_account

    with pytest.raises(UsageError, match=r"bits\.xyz: not a name of an image file .*; end the name in \.png, \.svg or \.pdf"):
        plot_account(stats(vql), tmp_path / "bits.xyz")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_names_the_extra_to_install(
    vql: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vqlabel.report.plots import plot_account

    absent: dict[str, Any] = {"matplotlib": None, "matplotlib.figure": None}
    for name, module in absent.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
    with pytest.raises(MissingExtra, match=r"this needs matplotlib, which is not installed; run: pip install 'vqlabel\[plot\]'"):
        plot_account(stats(vql), tmp_path / "bits.png")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.vql: no such file; name a \.vql file"):
        stats(tmp_path / "a.vql")
