"""Arguments of the wrong type: every public callable raises, before any work, an error that names the argument."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel import bitstream
from vqlabel.codecs.raw.codec import RawCodec
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.errors import NoSuchFile, UsageError, VqlabelError, WrongType
from vqlabel.labels import Place
from vqlabel.metrics.code_usage import CodeUsage
from vqlabel.training import losses, temperature
from vqlabel.training.text.labels import DenseLogits, TokenLabels
from vqlabel.type_checks import check_type
from vqlabel.workflows.teacher_source import TeacherSource

DATASET, SOURCE = object.__new__(vqlabel.VqlDataset), object.__new__(TeacherSource)
LOGITS = torch.zeros(2, 3)
TOKEN_LABELS = TokenLabels(position=torch.tensor([0, 1]), next_tokens=torch.tensor([0, 1]), classes=3, source=DenseLogits(LOGITS))
CODES, BITS = np.ones((2, 3), np.uint32), [8, 8, 8]
FILE, OUT = {"path": "nowhere.vql"}, {"out": "nowhere.npy"}
RUN = {"overwrite": False, "progress": lambda *_: None}
LABELLED = {"labels": np.zeros((2, 3), np.float32), "place": Place(0, 0)}
LOSS = {"student_logits": LOGITS, "labels": LOGITS, "domain": "logits"}

Call = tuple[Callable[..., Any], dict[str, Any]]
CALLS: dict[str, Call] = {
    "FitConfig": (vqlabel.FitConfig, {
        "codec": "vqae", "bits": 8, "bytes": 9, "ratio": 2.0, "slots": 2, "variable_rate": False, "codebook_size": 8, "code_width": 2,
        "latent": 8, "weight_bits": 8, "prior": False, "image_width": 4, "hidden": 8, "temperature": (1.0,), "exact_classes": 0,
        "gain": 1.0, "epochs": 1, "seed": 0, "device": "cpu",
    }),
    "LabelBatch": (vqlabel.LabelBatch, {
        **LABELLED, "image": np.zeros(2, int), "crop": np.zeros((2, 4)), "flip": np.zeros(2, bool), "mix_index": np.zeros(2, int),
        "mix_lam": 0.5, "mix_box": (0, 0, 1, 1), "partner_image": np.zeros(2, int), "partner_crop": np.zeros((2, 4)),
        "partner_flip": np.zeros(2, bool), "cutout": np.zeros((2, 7)), "patches": np.zeros((2, 2, 1), int),
        "ops": np.zeros((2, 1, 3)), "seed": np.zeros(2, int),
    }),
    "open_labels": (vqlabel.open_labels, {
        "path": "nowhere", "layout": "arrays", "domain": "logits", "classes": 3, "images": "nowhere", "class_map": "nowhere",
    }),
    "fit": (vqlabel.fit, {"dump": "nowhere", "config": vqlabel.FitConfig(), **OUT, "restart": False, **RUN}),
    "pack": (vqlabel.pack, {
        "dump": "nowhere", **OUT, "config": vqlabel.FitConfig(), "codec": "nowhere", "effort": "fast", "augmentation": "keep", "keep": 0.5,
        "by": "batch", **RUN,
    }),
    "unpack": (vqlabel.unpack, {
        **FILE, **OUT, "layout": "arrays", "records": (0, None), "dtype": "f16", "device": "cpu", **RUN,
    }),
    "convert": (vqlabel.convert, {"source": "nowhere", **OUT, "layout": "arrays", **RUN}),
    "relabel": (vqlabel.relabel, {
        "source": SOURCE, "teacher": "nowhere", **OUT, "codec": "nowhere", "layout": "arrays", "effort": "fast", "device": "cpu", **RUN,
    }),
    "relabel_text": (vqlabel.relabel_text, {
        "corpus": "nowhere", "teacher": "nowhere", **OUT, "config": vqlabel.TextFitConfig(), "codec": "nowhere", "batch": 4, **RUN,
    }),
    "verify": (vqlabel.verify, FILE),
    "info": (vqlabel.info, FILE),
    "tune": (vqlabel.tune, {"dump": "nowhere", "config": vqlabel.FitConfig(), "kl": 1.0, "bits": 8.0, "minutes": 9.0, "judge": abs, **OUT, **RUN}),
    "tune_text": (vqlabel.tune_text, {
        "dump": "nowhere", "goal": vqlabel.TextGoal(bits=8), "config": vqlabel.TextFitConfig(), "head": "nowhere", "layer": 1, **OUT, **RUN,
    }),
    "compare": (vqlabel.compare, {"dump": "nowhere", "config": vqlabel.CompareConfig()}),
    "compare_text": (vqlabel.compare_text, {"dump": "nowhere", "config": vqlabel.TextCompareConfig(), "head": "nowhere", "layer": 1}),
    "stats": (vqlabel.stats, {**FILE, "against": "nowhere", "teacher_bytes": 5, "device": "cpu", "progress": lambda *_: None}),
    "stats_text": (vqlabel.stats_text, {
        **FILE, "against": "nowhere", "head": "nowhere", "labels": 5, "seed": 0, "device": "cpu", "progress": lambda *_: None,
    }),
    "load_codec": (vqlabel.load_codec, FILE),
    "save_codec": (vqlabel.save_codec, {"codec": RawCodec(RawConfig(classes=2, domain="logits", dtype="F16")), **FILE, "report": {}, "overwrite": False}),
    "open": (vqlabel.open, {**FILE, "device": "cpu"}),
    "VqlDataset": (vqlabel.VqlDataset, {**FILE, "device": "cpu"}),
    "VqlViews": (vqlabel.VqlViews, {
        **FILE, "images": "nowhere", "size": 8, "transform": abs, "device": "cpu", "decode": True,
    }),
    "StoredBatches": (vqlabel.StoredBatches, {"dataset": DATASET, "epochs": [0], "rank": 0, "world": 1}),
    "PooledBatches": (vqlabel.PooledBatches, {
        "dataset": DATASET, "per_epoch": 1, "replacement": True, "seed": 0, "epochs": [0], "rank": 0, "world": 1,
    }),
    "TextFitConfig": (vqlabel.TextFitConfig, {
        "bits": 8.0, "slots": 2, "codebook_size": 8, "ids": 2, "latent": 8, "weight_bits": 8, "prior": False, "width": 8, "layers": 1, "window": 2,
        "future": False, "embed_head": False, "labels": 5, "epochs": 1, "seed": 0, "device": "cpu",
    }),
    "fit_text": (vqlabel.fit_text, {"dump": "nowhere", "config": vqlabel.TextFitConfig(), "head": "nowhere", "layer": 1, **OUT, **RUN}),
    "pack_text": (vqlabel.pack_text, {
        "dump": "nowhere", **OUT, "config": vqlabel.TextFitConfig(), "head": "nowhere", "codec": "nowhere", "tokenizer": "nowhere", "layer": 1,
        **RUN,
    }),
    "open_text": (vqlabel.open_text, {**FILE, "device": "cpu", "head": "nowhere", "corpus": None}),
    "TextLabels": (vqlabel.TextLabels, {**FILE, "device": "cpu", "head": "nowhere", "corpus": None}),
    "kd_loss": (vqlabel.kd_loss, {
        "student": LOGITS, "head": torch.zeros(3, 3), "labels": TOKEN_LABELS, "temperature": 1.0, "ce_weight": 0.1, "direction": "forward", "bias": LOGITS[0],
    }),
    "kl": (losses.kl, {**LOSS, "temperature": 1.0, "student_temperature": 1.0, "squared": False}),
    "bce": (losses.bce, {**{k: v for k, v in LOSS.items() if k != "domain"}, "temperature": 1.0, "squared": False}),
    "targets": (losses.targets, {"labels": LOGITS, "temperature": 1.0, "domain": "logits"}),
    "top_k": (losses.top_k, {"labels": LOGITS, "k": 1, "domain": "logits"}),
    "mse_gt": (losses.mse_gt, {**LOSS, "target": torch.tensor([0, 1]), "weight": 0.1}),
    "StepSchedule": (temperature.StepSchedule, {"start": 20.0, "end": 2.0, "every": 30, "gamma": 0.7}),
    "StepSchedule.temperature": (temperature.StepSchedule().temperature, {"epoch": 1}),
    "CosineSchedule": (temperature.CosineSchedule, {"start": 20.0, "end": 2.0, "epochs": 30}),
    "CosineSchedule.temperature": (temperature.CosineSchedule().temperature, {"epoch": 1}),
    "StudentTemperature": (temperature.StudentTemperature, {"start": 1.0, "grid": [1.0]}),
    "StudentTemperature.update": (temperature.StudentTemperature().update, {**LOSS, "temperature": 1.0}),
    "StudentTemperature.load_state_dict": (temperature.StudentTemperature().load_state_dict, {"state": {}}),
    "CodeUsage": (CodeUsage, {"slots": 3, "codebook_size": 8}),
    "CodeUsage.add": (CodeUsage(3, 8).add, {"codes": CODES, "used": np.ones(2, int)}),
    "stored_count_bits": (bitstream.stored_count_bits, {"counts": CODES[:, :1], "width": 8}),
    "split_ragged": (bitstream.split_ragged, {"codes": CODES}),
    "join_ragged": (bitstream.join_ragged, {"counts": CODES[:, :1], "run": CODES[:, :1], "slots": 2}),
    "narrowest_dtype": (bitstream.narrowest_dtype, {"bits": BITS}),
    "packed_size": (bitstream.packed_size, {"rows": 2, "bits": BITS}),
    "planes_size": (bitstream.planes_size, {"rows": 2, "bits": BITS}),
    "pack_fixed": (bitstream.pack_fixed, {"rows": CODES, "bits": BITS}),
    "pack_ans": (bitstream.pack_ans, {"rows": CODES, "bits": BITS}),
    "unpack_ans": (bitstream.unpack_ans, {"data": bytes(6), "rows": 2, "bits": BITS}),
    "pack_planes": (bitstream.pack_planes, {"rows": CODES, "bits": BITS, "level": 3}),
    "unpack_fixed": (bitstream.unpack_fixed, {"data": bytes(6), "rows": 2, "bits": BITS}),
    "unpack_planes": (bitstream.unpack_planes, {"data": bytes(6), "rows": 2, "bits": BITS}),
}  # fmt: skip
SIMILAR = {int: (1.5, "3"), float: ("1",), str: (3,), bool: (1, "no"), tuple: (1.0,), list: (3, "ab")}


def every(call: Callable[..., Any], right: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call: those in `right`, otherwise the defaults."""
    parameters = inspect.signature(call).parameters.items()
    return {name: right.get(name, p.default) for name, p in parameters if p.kind is not p.VAR_KEYWORD}


WRONG = [
    (name, argument, wrong)
    for name, (call, right) in CALLS.items()
    for argument, value in every(call, right).items()
    for wrong in (object(), *SIMILAR.get(type(value), ()))
    if not (argument == "bits" and wrong == "ab")
]


@pytest.mark.parametrize(("name", "argument", "wrong"), WRONG, ids=[f"{n}({a}={w!r:.12})" for n, a, w in WRONG])
def test_an_argument_of_another_type_is_refused_with_its_name(name: str, argument: str, wrong: object) -> None:
    call, right = CALLS[name]
    message = (
        "widths are" if argument in ("bits", "width") and "FitConfig" not in name and name != "tune" else rf"^{argument} (is|are) "
    )
    with pytest.raises(VqlabelError, match=message) as refused:
        call(**{**every(call, right), argument: wrong})
    assert len(str(refused.value)) < 400


def test_every_public_callable_and_every_argument_is_covered() -> None:
    public = {
        name
        for name in vqlabel.__all__
        if name not in ("VqlabelError", "KdMixin", "CompareConfig", "TextCompareConfig", "TextGoal")
    }  # the mix-in takes what its trainer takes
    public |= {name for name in bitstream.__all__ if inspect.isfunction(getattr(bitstream, name))}
    for module in (losses, temperature):
        public |= {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and not n.startswith("_")}
    assert public <= set(CALLS)
    for call, right in CALLS.values():
        assert set(right) <= set(every(call, right))
        assert not any(value is inspect.Parameter.empty for value in every(call, right).values())


def test_numpy_numbers_and_lists_are_accepted_and_converted() -> None:
    config = vqlabel.FitConfig(bits=np.int64(64), ratio=None, temperature=[np.float32(1), 4], gain=1)  # type: ignore[arg-type]
    assert (config.bits, config.temperature, config.gain) == (64, (1.0, 4.0), 1.0)
    assert [type(v) for v in (config.bits, *config.temperature, config.gain)] == [int, float, float, float]
    assert vqlabel.FitConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vqlabel.FitConfig(temperature=1.0), r"temperature is 1\.0 \(float\); it must be a list of .* such as \(1\.0,\)"),
        (lambda: vqlabel.FitConfig(bits=1.5), r"bits is 1\.5 \(float\); it must be a whole number or None"),
        (lambda: vqlabel.FitConfig(ratio=10**400), r"ratio is 1000.*; it must be a number"),
        (lambda: vqlabel.verify(np.zeros((3, 4))), r"path is ndarray \[3, 4\]; it must be a path: save it, .* and pass the path"),
        (
            lambda: vqlabel.fit(3),
            r"dump is 3 \(int\); it must be a path or a dump, .* or an array or a tensor or a mapping of arrays",
        ),
        (lambda: vqlabel.fit("nowhere", bit=64), "unknown argument 'bit'; did you mean 'bits'"),
        (
            lambda: vqlabel.pack("nowhere", "x.vql", vqlabel.FitConfig(), ratio=9.0),
            "config and ratio are both given; pass either a FitConfig",
        ),
        (lambda: vqlabel.fit("d", {"bits": 64}), r"config is .* \(dict\); it must be a FitConfig, such as FitConfig\(bits=64\)"),
        (lambda: vqlabel.pack("d", "o", codec=(None, {})), r"codec is .*: fit and load_codec return .*; pass the first of them"),
        (
            lambda: vqlabel.relabel("ims", "x.vql"),
            r"teacher is None; pass the network, a torch\.nn\.Module, or its name",
        ),
    ],
)
def test_likely_mistakes_are_refused_with_a_remedy(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(WrongType, match=message) as refused:
        call()
    assert isinstance(refused.value, TypeError | UsageError)


def test_pack_accepts_a_codec_or_the_path_of_its_file(dump: Path, codec_file: Path, tmp_path: Path) -> None:
    for name, codec in (("a", codec_file), ("b", str(codec_file)), ("c", vqlabel.load_codec(codec_file)[0])):
        vqlabel.pack(dump, tmp_path / name, codec=codec)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(
    "call", [vqlabel.open, vqlabel.verify, vqlabel.stats, vqlabel.load_codec, vqlabel.open_labels, vqlabel.fit]
)
def test_a_missing_file_raises_an_error_that_is_also_a_filenotfounderror(call: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^\S*gone: no such file"):
        call(tmp_path / "gone")
    assert NoSuchFile("a").exit_code == 2


def test_negative_and_fractional_numbers_are_not_packed() -> None:
    for pack in (bitstream.pack_fixed, bitstream.pack_planes):
        for kind in (np.int8, np.int64):
            with pytest.raises(VqlabelError, match="value -1 at row 1, field 0 is below 0"):
                pack(np.array([[1], [-1]], kind), [8])
        with pytest.raises(VqlabelError, match=r"rows are ndarray of float64 \[1, 1\]; they must be integers"):
            pack(np.array([[0.5]]), [8])  # type: ignore[arg-type]
    with pytest.raises(VqlabelError, match=r"codes lie in -1\.\.-1; they must be 0\.\.3"):
        CodeUsage(1, 4).add(np.array([[-1]]))
    with pytest.raises(VqlabelError, match=r"counts lie in -1\.\.0; a label has 0\.\.2 codes"):
        bitstream.split_ragged(np.array([[-1, 0, 0]]))  # type: ignore[arg-type]


def test_dictionaries_strings_and_matrices_are_not_lists_and_true_is_not_a_number() -> None:
    for value in ({0: 1.0}, "1", np.ones((1, 1)), [True], [None], [[1.0]]):
        with pytest.raises(WrongType):
            check_type("x", value, tuple[float, ...])
    assert check_type("x", np.ones(2), tuple[float, ...]) == (1.0, 1.0)
