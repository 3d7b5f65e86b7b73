"""Laws that hold for every codec and every configuration."""

import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import flip_bit
from numpy.typing import NDArray
from pretended_cuda import pretended_cuda
from safetensors.torch import save_file
from torch import Tensor, nn

from vqlabel import FitConfig
from vqlabel.bitstream import ANS, join_ragged, pack_fixed, split_ragged, unpack_fixed
from vqlabel.codecs import LabelCodec, LabelSample, build_codec, fit_codec, load_codec, save_codec
from vqlabel.codecs.base import EFFORTS
from vqlabel.codecs.file import KEY
from vqlabel.codecs.precision import bf16_products
from vqlabel.codecs.raw.config import RawConfig
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.codecs.topk.config import TopkConfig
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.config import PriorConfig, VqaeConfig
from vqlabel.errors import BadContainer, BadLabels, TargetExists, UsageError
from vqlabel.labels import Context
from vqlabel.vql.decode import as_tensor
from vqlabel.workflows.fit import fit

ALL = ("mix", "crop", "flip", "partner_crop", "partner_flip", "box")
PRIOR = {"codebook_size": 8, "prior": True, "image_width": 4, "hidden": 6}
KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...] | None]] = {  # dtype of the dump, options, fields of its context
    "raw fp16": ("F16", {"codec": "raw"}, None),
    "raw bf16": ("BF16", {"codec": "raw"}, None),
    "raw fp32": ("F32", {"codec": "raw"}, None),
    "top-k": ("F16", {"codec": "topk", "slots": 5}, None),
    "sparse": ("F16", {"codec": "sparse", "slots": 5}, None),
    "sparse fp32, by bits": ("F32", {"codec": "sparse", "slots": 7, "bits": 64}, None),
    "sparse bf16 of one class": ("BF16", {"codec": "sparse", "slots": 1}, None),
    "residual vqae": ("F16", {"slots": 5, "codebook_size": 8}, None),
    "grouped vqae": ("F16", {"slots": 5, "codebook_size": 8, "code_width": 3}, None),
    "vqae with an odd codebook": ("F32", {"slots": 3, "codebook_size": 11}, None),
    "vqae of 3 bits a weight": ("F16", {"slots": 3, "codebook_size": 8, "weight_bits": 3}, None),
    "vqae with a prior": ("F16", {**PRIOR, "slots": 3, "weight_bits": 5}, ALL),
    "vqae with a prior of images": ("F16", {**PRIOR, "slots": 3}, ()),
    "vqae with exact classes": ("F16", {"slots": 3, "codebook_size": 8, "exact_classes": 2}, None),
    "exact classes and a prior": ("F16", {**PRIOR, "slots": 0, "exact_classes": 1}, ALL),
    "vqae for students of one temperature": ("F16", {"slots": 3, "codebook_size": 8, "temperature": (1.0,)}, None),
    "vqae of a variable rate": ("F16", {"bits": 9, "codebook_size": 8, "variable_rate": True}, None),
    "a variable rate and a prior": ("F16", {**PRIOR, "bits": 6, "variable_rate": True, "temperature": (1.0,)}, ALL),
    "a prior alone": ("BF16", {**PRIOR, "slots": 0, "weight_bits": 4}, ("mix", "crop", "partner_crop")),
}
FITTED_IN_BF16 = ("residual vqae", "grouped vqae", "vqae with a prior", "a variable rate and a prior")
COMPILED = (
    "raw fp16",
    "top-k",
    "sparse",
    "grouped vqae",
    "vqae with a prior",
    "exact classes and a prior",
    "a variable rate and a prior",
)
SIGMOID = (  # kinds to test with sigmoid labels as well
    "raw fp16", "residual vqae", "grouped vqae", "vqae with a prior", "vqae of a variable rate",
)  # fmt: skip
HELD = 60


@dataclass(frozen=True)
class Case:
    """A fitted codec, and the labels and context that it was fitted to."""

    name: str
    codec: LabelCodec
    labels: Tensor
    context: Context | None
    domain: str

    def side(self, rows: slice = slice(None)) -> Context | None:
        return None if self.context is None else self.context.rows(rows)

    @cached_property
    def codes(self) -> Tensor:
        """The codes of all labels."""
        return self.encode()

    @cached_property
    def decoded(self) -> Tensor:
        """The labels decoded from `codes`."""
        return self.decode(self.codes)

    def encode(self, rows: slice = slice(None)) -> Tensor:
        return self.codec.encode(self.labels[rows], self.side(rows))

    def decode(self, codes: Tensor, rows: slice = slice(None)) -> Tensor:
        return self.codec.decode(codes, self.side(rows))


def draw_context(fields: tuple[str, ...] | None, epochs: int, images: int) -> Context | None:
    """Every image once per epoch, mixed with another image of the same epoch."""
    if fields is None:
        return None
    rng, n = np.random.default_rng(5), epochs * images
    crops = rng.random((2, n, 4)).astype(np.float32)
    values: dict[str, Any] = {
        "mix": rng.random(n).astype(np.float32), "crop": crops[0], "flip": rng.random(n) < 0.5, "partner_crop": crops[1],
        "partner_flip": rng.random(n) < 0.5, "box": rng.integers(0, 224, (n, 4)),
    }  # fmt: skip
    partner = np.concatenate([rng.permutation(images) for _ in range(epochs)]) if "mix" in fields else None
    return Context(image=np.tile(np.arange(images), epochs), partner=partner, **{name: values[name] for name in fields})


NAMES = [*KINDS, *(f"{kind}, fitted in bf16" for kind in FITTED_IN_BF16)]
CASES = [  # the domain that a codec accepts does not depend on the precision of its fit
    *itertools.product(NAMES, ("logits",)), *itertools.product(KINDS, ("probs",)), *itertools.product(SIGMOID, ("sigmoid",)),
]  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, logits: NDArray[np.float16], probs: NDArray[np.float16]) -> Case:
    name, domain = request.param
    kind, _, bf16 = name.partition(", fitted in ")
    dtype, options, fields = KINDS[kind]
    labels = torch.from_numpy(probs if domain == "probs" else logits).flatten(0, 1)
    if dtype != "F16":  # bf16 dumps are read as float32
        labels = (labels * 1.0001).bfloat16().float() if dtype == "BF16" else labels.float()
    context = draw_context(fields, *logits.shape[:2])
    seen, held = (None if context is None else context.rows(rows) for rows in (slice(-HELD), slice(-HELD, None)))
    config = FitConfig(**{"codec": "vqae", "epochs": 1, **options})
    sample = LabelSample(
        train=labels[:-HELD], held_out=labels[-HELD:], train_context=seen, held_out_context=held, domain=domain, dtype=dtype
    )
    with bf16_products(bool(bf16)):
        codec = fit_codec(sample, config).requires_grad_(False)
    return Case(name, codec, labels, context, domain)


def test_codes_have_one_column_per_slot_and_fit_into_their_bits(case: Case) -> None:
    codes = case.codes
    assert codes.dtype == torch.int32
    assert codes.shape == (len(case.labels), len(case.codec.code_bits))
    largest = codes.numpy().view(np.uint32).max(0)
    assert all(int(code) < 1 << bits for code, bits in zip(largest, case.codec.code_bits, strict=True))
    if isinstance(case.codec, VqaeCodec) and case.codec.config.slots:
        first = int(case.codec.config.max_codes is not None)
        assert int(codes[:, first : first + case.codec.config.slots].max()) < case.codec.config.codebook_size


def test_codes_beyond_the_count_of_a_label_are_zero_and_do_not_change_it(case: Case) -> None:
    codes = case.codes
    if not (case.codec.config.max_codes is not None):
        fixed = len(codes) * sum(case.codec.code_bits)
        assert (
            case.codec.stored_bits(codes) == fixed
            if ANS not in case.codec.config.codings
            else case.codec.stored_bits(codes) <= fixed
        )
        return
    slots = case.codec.config.slots
    beyond = torch.arange(slots) >= codes[:, :1]
    assert 0 <= int(codes[:, 0].min()) < int(codes[:, 0].max()) <= slots
    assert bool(beyond.any()) and not bool(codes[:, 1:][beyond].any())
    altered = codes.clone()
    altered[:, 1:][beyond] = case.codec.config.codebook_size - 1
    torch.testing.assert_close(case.decode(altered), case.decoded, atol=1e-6, rtol=1e-6)
    counts, run = split_ragged(codes.numpy().view(np.uint32))
    assert np.array_equal(join_ragged(counts, run, slots), codes.numpy())
    packed = len(run) * case.codec.config.code_bits + 8 * len(pack_fixed(counts, case.codec.code_bits[:1]))
    assert len(run) * case.codec.config.code_bits < case.codec.stored_bits(codes) <= packed


def test_a_codec_requires_a_context_only_if_it_uses_one(case: Case) -> None:
    assert bool(case.codec.needs) == (case.context is not None)
    case.codec.check_context(case.context)
    if case.context is None:
        case.codec.check_context(None)
        unused = Context(image=np.arange(len(case.labels)) + 1000)
        assert torch.equal(case.codec.decode(case.codes, unused), case.decoded)
        return
    codes = case.codes
    for broken in (None, Context(), Context(image=case.context.image + 1000)):
        with pytest.raises(UsageError, match="the codec's prior"):
            case.codec.check_context(broken)
        with pytest.raises(UsageError, match="the codec's prior"):
            case.codec.encode(case.labels, broken)
        with pytest.raises(UsageError, match="the codec's prior"):
            case.codec.decode(codes, broken)


def test_decoded_labels_are_finite_and_have_the_shape_of_the_labels(case: Case) -> None:
    decoded = case.decoded
    assert decoded.dtype == torch.float32
    assert decoded.shape == case.labels.shape
    assert bool(torch.isfinite(decoded).all())


def test_decoded_probabilities_are_a_distribution(case: Case) -> None:
    if case.domain != "probs":
        assert bool((case.decoded < 0).any())
        return
    decoded = case.decoded
    assert float(decoded.min()) >= 0
    torch.testing.assert_close(decoded.sum(1), torch.ones(len(decoded)), atol=0.01 if case.codec.kind == "raw" else 1e-5, rtol=0)


def test_codes_of_every_integer_dtype_decode_to_the_same_labels(case: Case) -> None:
    codes = case.codes
    want = case.decoded
    unsigned = codes.long() & 0xFFFFFFFF
    narrow = max(case.codec.code_bits, default=1) <= 8
    for other in (codes.long(), unsigned, *([codes.to(torch.uint8)] if narrow else [])):
        torch.testing.assert_close(case.decode(other), want, atol=0, rtol=0)
    assert torch.equal(case.codec(codes, case.context), want)


def test_the_sum_of_the_code_bits_is_the_size_of_a_label_in_the_bitstream(case: Case) -> None:
    if not case.codec.code_bits or (case.codec.config.max_codes is not None):
        return  # a label without codes takes one bit of a file: tests/workflows/test_pack_unpack.py
    codes = case.codes
    packed = pack_fixed(codes.numpy().view(np.uint32), case.codec.code_bits)
    assert len(packed) == -(-len(codes) * sum(case.codec.code_bits) // 8)
    back = as_tensor(unpack_fixed(packed, len(codes), case.codec.code_bits))
    assert torch.equal(case.decode(back), case.decoded)


def test_encoding_is_deterministic(case: Case) -> None:
    assert torch.equal(case.encode(), case.codec.encode(case.labels.clone(), case.side()))


@pytest.mark.parametrize("size", [1, 7, 256])
def test_codes_do_not_depend_on_the_batch(case: Case, size: int) -> None:
    """Except for near ties, because the rounding of a matrix product depends on its size."""
    parts = [slice(at, at + size) for at in range(0, len(case.labels) // {1: 12, 7: 3}.get(size, 1), size)]
    pieces = [case.encode(part) for part in parts]
    whole, codes = case.codes[: parts[-1].stop], torch.cat(pieces)
    same = (whole == codes).all(1)
    assert float(same.float().mean()) >= (0.98 if case.codec.kind == "vqae" else 1)
    decoded = torch.cat([case.decode(piece, part) for piece, part in zip(pieces, parts, strict=True)])
    torch.testing.assert_close(decoded[same], case.decoded[: len(whole)][same], atol=1e-4, rtol=1e-4)


def test_zero_labels_give_zero_codes_and_zero_labels(case: Case) -> None:
    codes = case.encode(slice(0))
    assert codes.shape == (0, len(case.codec.code_bits))
    assert case.decode(codes, slice(0)).shape == (0, case.labels.shape[1])


@contextmanager
def setting(get: Callable[[], Any], change: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    change(value)
    try:
        yield
    finally:
        change(before)


def products_in(precision: str) -> AbstractContextManager[None]:
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, precision)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to fp16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype fp16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "default dtype fp64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "another default device": lambda: torch.device("meta"),
    "products in bf16": lambda: products_in("medium"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
}


def test_codes_and_labels_do_not_depend_on_the_torch_settings_of_the_caller(case: Case) -> None:
    few = slice(16)
    codes = case.encode(few)
    want = case.decode(codes, few)
    for name, settings in SETTINGS.items():
        with settings():
            encoded, decoded = case.encode(few), case.decode(codes, few)
            built = build_codec(case.codec.kind, case.codec.config.to_dict(), case.codec.decoder_tensors())
            rebuilt = built.decode(codes, case.side(few))
        assert torch.equal(encoded, codes), name
        assert decoded.dtype == rebuilt.dtype == torch.float32, name
        assert torch.equal(decoded, want) and torch.equal(rebuilt, want), name


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_an_enclosing_module_does_not_change_the_labels(case: Case, cast: str) -> None:
    module = nn.ModuleDict({"student": nn.Linear(2, 2), "labels": copy.deepcopy(case.codec)})
    getattr(module, cast)()
    assert module["student"].weight.dtype != torch.float32
    assert torch.equal(module["labels"](case.codes, case.context), case.decoded)


def test_a_codec_compiles_as_one_graph(case: Case) -> None:
    if case.name not in COMPILED or case.domain == "logits":  # a second each
        return
    torch._dynamo.reset()
    compiled, few = torch.compile(case.codec, backend="eager", fullgraph=True), slice(16)
    codes = case.encode(few)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(codes, case.side(few)), case.decode(codes, few))
    if case.context is not None:
        with pytest.raises(UsageError, match="is unknown to the codec's prior"):
            compiled(codes, dataclasses.replace(case.context.rows(few), image=np.arange(16) + 1000))


def test_on_cuda_no_devices_are_mixed_and_labels_are_the_same(case: Case) -> None:
    if case.domain == "probs" or "bf16" in case.name:  # differ from the others in no tensor that could be elsewhere
        return
    few, codec = slice(16), copy.deepcopy(case.codec)
    codes = case.encode(few)
    with pretended_cuda():
        codec.to("cuda")
        for effort in EFFORTS:
            codec.set_effort(effort)
            found = codec.encode(case.labels[few].to("cuda"), case.side(few))
            assert found.device.type == "cuda"
            if effort == case.codec.effort:
                assert torch.equal(found.cpu(), codes)
        decoded = codec(codes.to("cuda"), case.side(few))
        assert decoded.device.type == "cuda"
        assert torch.equal(decoded.cpu(), case.decode(codes, few))


def test_another_number_of_classes_is_refused(case: Case) -> None:
    with pytest.raises(BadLabels, match=r"labels have shape \[360, 39\], the codec was fitted for 40 classes; fit a codec"):
        case.codec.encode(case.labels[:, 1:], case.context)
    with pytest.raises(BadLabels, match=r"labels have shape \[40\]"):
        case.codec.encode(case.labels[0], case.context)


def test_an_unknown_effort_is_refused(case: Case) -> None:
    with pytest.raises(UsageError, match="effort is 'hardest'; it must be one of fast, normal, best"):
        case.codec.set_effort("hardest")


def test_a_saved_codec_encodes_and_decodes_as_the_fitted_one(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "some.codec"
    save_codec(case.codec, path, {"held_out": {"kl_T1": 0.5}})
    loaded, report = load_codec(path)
    codes = case.codes
    assert report == {"held_out": {"kl_T1": 0.5}}
    assert loaded.config == case.codec.config
    assert torch.equal(loaded.encode(case.labels, case.context), codes)
    assert torch.equal(loaded.decode(codes, case.context), case.decoded)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TargetExists, match=r"some\.codec exists; pass --overwrite"):
        save_codec(case.codec, path)


def test_a_codec_file_with_one_flipped_bit_is_refused_or_loads_unchanged(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "some.codec"
    save_codec(case.codec, path, {"held_out": {"kl_T1": 0.5}})
    data, want = path.read_bytes(), case.codec.file_tensors()
    refused = 0
    for at in range(3, len(data), max(1, len(data) // 50)):
        path.write_bytes(flip_bit(data, at, at % 8))
        try:
            loaded, report = load_codec(path)
        except BadContainer:
            refused += 1
            continue
        assert (loaded.config, report) == (case.codec.config, {"held_out": {"kl_T1": 0.5}})
        assert all(torch.equal(loaded.file_tensors()[name], tensor) for name, tensor in want.items())
    assert refused > 30


def test_decoder_tensors_and_configuration_suffice_for_encoding_and_decoding(case: Case) -> None:
    config = json.loads(case.codec.config.to_json())
    tensors = {name: tensor.clone() for name, tensor in case.codec.decoder_tensors().items()}
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.int8, torch.uint8, torch.float16}
    built = build_codec(case.codec.kind, config, tensors)
    codes = case.codes
    assert torch.equal(built.encode(case.labels, case.context), codes)
    assert torch.equal(built.decode(codes, case.context), case.decoded)


def test_a_file_that_is_not_a_codec_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.codec"
    with pytest.raises(UsageError, match="no such file; name a codec that `vqlabel fit` wrote"):
        load_codec(path)
    path.write_bytes(b"not a codec")
    with pytest.raises(BadContainer, match="not a readable codec file"):
        load_codec(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(BadContainer, match="a safetensors file, but not a codec file"):
        load_codec(path)
    unreadable, foreign = "its configuration cannot be read", "RawConfig has the fields"
    for description, message in (
        ("[" * 100_000, unreadable),
        ("{", unreadable),
        ("7", unreadable),
        ("{}", unreadable),
        ('{"kind": "raw", "config": {}, "report": 7}', unreadable),
        ('{"kind": "raw", "config": 7, "report": {}}', foreign),
        ('{"kind": "raw", "config": {"classes": 2}, "report": {}}', foreign),
        (
            '{"kind": "pixie", "config": {}, "report": {}}',
            "codec kind 'pixie' is unknown; this vqlabel has vqae, sparse, topk, raw, token_vqae: upgrade it",
        ),
        ('{"kind": ["raw"], "config": {}, "report": {}}', r"codec kind \['raw'\] is unknown"),
        (
            '{"kind": "raw", "config": {}, "report": {}, "sha256": "0"}',
            "its sha256 does not match its content; the file is damaged",
        ),
        (
            '{"kind": "raw", "config": {}, "report": {}, "sha25v": "0"}',
            "its sha256 does not match its content; the file is damaged",
        ),
    ):
        save_file({"a": torch.zeros(1)}, path, {KEY: description})
        with pytest.raises(BadContainer, match=rf"some\.codec: {message}"):
            load_codec(path)


VQAE_CONFIG = VqaeConfig(
    classes=1000, domain="logits", slots=16, codebook_size=200, latent=64, code_width=64, quantizer="residual", weight_bits=8,
    prior=None, temperature=(1.0, 4.5),
)  # fmt: skip
PRIOR_CONFIG = PriorConfig(images=70, image_width=12, hidden=20, fields=("mix", "flip", "box"), view=224)
CONFIGS = [
    FitConfig(),
    FitConfig(codec="sparse", bits=100, seed=3),
    FitConfig(codec="topk", bits=77, slots=3, temperature=(2.0,), epochs=0, seed=9, device="cuda:1"),
    FitConfig(bits=0, slots=0, prior=True, weight_bits=2, image_width=1024, hidden=1),
    VQAE_CONFIG,
    dataclasses.replace(VQAE_CONFIG, slots=0, weight_bits=2, prior=PRIOR_CONFIG),
    dataclasses.replace(VQAE_CONFIG, variable=True, rate=32.5, price=0.25),
    FitConfig(bits=32, slots=9, variable_rate=True),
    VqaeConfig(
        classes=2, domain="probs", slots=4, codebook_size=2, latent=64, code_width=16, quantizer="grouped", weight_bits=3, prior=None,
        temperature=(0.1,),
    ),
    PRIOR_CONFIG,
    PriorConfig(images=1 << 24, image_width=1, hidden=1, fields=(), view=1),
    SparseConfig(
        classes=90, domain="probs", k=4, rest="uniform", step=0.5, gaps=(1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0), rest_bits=6
    ),
    TopkConfig(classes=5, domain="probs", k=5),
    RawConfig(classes=1 << 20, domain="logits", dtype="BF16"),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_is_the_same_after_json(config: Any) -> None:
    assert type(config).from_dict(json.loads(config.to_json())) == config
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_with_other_fields_or_types_is_refused(config: Any) -> None:
    kind, values = type(config), config.to_dict()
    needed = [field.name for field in dataclasses.fields(config) if field.default is dataclasses.MISSING]
    without = [{name: value for name, value in values.items() if name != needed[0]}] if needed else []
    for changed in ({**values, "extra": 1}, *without, None, [values], 7):
        with pytest.raises(BadContainer, match=rf"{kind.__name__} has the fields \["):
            kind.from_dict(changed)
    for name, value in values.items():
        for wrong in (True, object(), {"a": 1}, *(["7"] if type(value) is int else [7])):
            if (wrong == 7 and (value is None or type(value) is float)) or (
                wrong is True and name in ("prior", "lift", "variable", "variable_rate")
            ):
                continue
            nested = "|PriorConfig has the fields" if (kind, name) == (VqaeConfig, "prior") else ""
            with pytest.raises(BadContainer, match=rf"{name} is .*; it must be{nested}"):
                kind.from_dict({**values, name: wrong})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "stored VqaeConfig: classes is 1; it must be 2..1048576"),
        ({"domain": "odds"}, "domain is 'odds'; it must be logits, probs or sigmoid"),
        ({"slots": 1025}, r"slots is 1025; it must be 0\.\.1024"),
        ({"slots": -1}, r"slots is -1; it must be 0\.\.1024"),
        ({"weight_bits": 1}, r"weight_bits is 1; it must be 2\.\.8"),
        ({"weight_bits": 9}, r"weight_bits is 9; it must be 2\.\.8"),
        ({"prior": {**PRIOR_CONFIG.to_dict(), "images": 0}}, r"stored PriorConfig: images is 0; it must be 1\.\.16777216"),
        (
            {"prior": {**PRIOR_CONFIG.to_dict(), "fields": ["flip", "mix"]}},
            r"fields is \['flip', 'mix'\]; it must be some of mix, crop",
        ),
        ({"codebook_size": 1}, r"codebook_size is 1; it must be 2\.\.65536"),
        ({"codebook_size": 65537}, r"codebook_size is 65537; it must be 2\.\.65536"),
        ({"latent": 4097}, r"latent is 4097; it must be 1\.\.4096"),
        ({"quantizer": "magic"}, "quantizer is 'magic'; it must be residual or grouped"),
        ({"variable": True}, r"rate is 0\.0; it must be above 0 and at most 128, the bits of all slots"),
        ({"variable": True, "rate": 129}, r"rate is 129\.0; it must be above 0 and at most 128"),
        ({"variable": True, "rate": 9, "price": -1}, r"price is -1\.0; it must be 0 or above"),
        ({"variable": True, "rate": 9, "price": float("inf")}, r"price is inf; it must be 0 or above"),
        (
            {"variable": True, "rate": 9, "head": 1},
            "variable is True; it must be false without residual slots, and with exact classes",
        ),
        ({"variable": True, "rate": 9, "slots": 0}, "variable is True; it must be false"),
        ({"variable": True, "rate": 9, "quantizer": "grouped", "code_width": 4}, "variable is True; it must be false"),
        ({"rate": 9}, r"rate and price is \(9\.0, 0\.0\); it must be 0 at a fixed rate"),
        ({"code_width": 8}, r"code_width is 8; it must equal latent \(64\) for residual slots"),
        ({"quantizer": "grouped", "code_width": 5}, "code_width is 5; it must be latent / slots = 64/16 for grouped slots"),
        ({"temperature": []}, "temperature is .*; it must be 1 to 16 numbers"),
        ({"temperature": [0.0]}, "temperature is .*; it must be 1 to 16 numbers"),
        ({"temperature": [float("nan")]}, "temperature is .*; it must be 1 to 16 numbers"),
        ({"temperature": ["1"]}, r"temperature is \['1'\] .*; it must be a list of items that are each a number"),
        ({"temperature": list(range(1, 100))}, "temperature is .*; it must be 1 to 16 numbers"),
    ],
)
def test_a_stored_configuration_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    good = VQAE_CONFIG.to_dict()
    assert VqaeConfig.from_dict(good)
    with pytest.raises(BadContainer, match=message):
        VqaeConfig.from_dict({**good, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": (1 << 24) + 1}, r"images is 16777217; it must be 1\.\.16777216"),
        ({"image_width": 1025}, r"image_width is 1025; it must be 1\.\.1024"),
        ({"hidden": 0}, r"hidden is 0; it must be 1\.\.8192"),
        ({"view": 0}, r"view is 0; it must be 1\.\.65536"),
        ({"fields": ["mix", "mix"]}, r"fields is \['mix', 'mix'\]; it must be some of mix, crop, .*, in this order"),
        ({"fields": ["image"]}, r"fields is \['image'\]; it must be some of"),
    ],
)
def test_a_stored_prior_configuration_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    assert PriorConfig.from_dict(PRIOR_CONFIG.to_dict()) == PRIOR_CONFIG
    with pytest.raises(BadContainer, match=f"stored PriorConfig: {message}"):
        PriorConfig.from_dict({**PRIOR_CONFIG.to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": -1}, r"bits is -1; it must be 0\.\.1048576 code bits per label"),
        ({"slots": 1025}, r"slots is 1025; it must be 0\.\.1024"),
        (
            {"slots": 0, "codec": "topk"},
            r"slots is 0; it must be 1\.\.1024: only a vqae with residual slots can have 0 slots and a prior",
        ),
        ({"slots": 0, "code_width": 4}, r"slots is 0; it must be 1\.\.1024: only a vqae with residual slots"),
        ({"weight_bits": 1}, r"weight_bits is 1; it must be 2\.\.8"),
        ({"image_width": 0}, r"image_width is 0; it must be 1\.\.1024"),
        (
            {"variable_rate": True, "exact_classes": 1},
            "variable_rate is True; it must be left out with --exact-classes: labels with exact classes have a fixed rate",
        ),
        ({"variable_rate": True, "exact_classes": None}, "must be left out with --exact-classes"),
        (
            {"variable_rate": True, "codec": "topk"},
            "variable_rate is True; it needs a vqae with residual slots: leave out --codec topk, or --variable-rate",
        ),
        ({"variable_rate": True, "code_width": 4}, "leave out --code-width 4, or --variable-rate"),
        ({"variable_rate": True, "slots": 0}, "must be left out with 0 slots"),
        ({"variable_rate": True, "bits": 0}, "must be left out with 0 slots"),
        ({"codebook_size": 1}, r"codebook_size is 1; it must be 2\.\.65536"),
        ({"code_width": 0}, r"code_width is 0; it must be 1\.\.4096"),
        ({"latent": 0}, r"latent is 0; it must be 1\.\.4096"),
        ({"hidden": 9000}, r"hidden is 9000; it must be 1\.\.8192"),
        ({"epochs": -1}, r"epochs is -1; it must be 0\.\.10000"),
        ({"seed": 1 << 32}, r"seed is 4294967296; it must be 0\.\.4294967295"),
        ({"temperature": (1.0, 0.0)}, r"temperature is \[1\.0, 0\.0\]; it must be 1 to 16 numbers in 0\.01\.\.1000"),
        ({"temperature": (float("inf"),)}, r"temperature is \[inf\]; it must be 1 to 16 numbers"),
    ],
)
def test_a_fit_configuration_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FitConfig(**changes)


def test_raw_is_lossless() -> None:
    """Random bit patterns, with zeros of both signs and the smallest and largest numbers of each dtype."""
    rng = np.random.default_rng(0)
    for dtype, bits in (("F16", 16), ("BF16", 16), ("F32", 32)):
        pattern = rng.integers(0, 1 << bits, (50, 8), np.uint32)
        if dtype == "F16":
            pattern[(pattern & 0x7C00) == 0x7C00] = 0x8000
            labels = torch.from_numpy(pattern.astype(np.uint16).view(np.float16))
        else:
            wide = pattern << (16 if dtype == "BF16" else 0)
            wide[(wide & 0x7F800000) == 0x7F800000] = 0x80000000
            labels = torch.from_numpy(wide.view(np.float32))
        codec = build_codec("raw", RawConfig(classes=8, domain="logits", dtype=dtype).to_dict(), {})
        assert codec.code_bits == [bits] * 8
        decoded = codec.decode(codec.encode(labels))
        assert torch.equal(decoded.view(torch.int32), labels.float().view(torch.int32))


def test_top_k_keeps_the_largest_entries_and_their_softmax() -> None:
    labels = torch.tensor([[0.0, 3.0, -1.0, 2.0, 1.0]])
    codec = build_codec("topk", TopkConfig(classes=5, domain="logits", k=2).to_dict(), {})
    assert codec.code_bits == [3, 3, 16, 16]
    codes = codec.encode(labels)
    assert codes[0, :2].tolist() == [1, 3]
    student = torch.softmax(codec.decode(codes), 1)
    torch.testing.assert_close(student, torch.tensor([[0, np.e / (1 + np.e), 0, 1 / (1 + np.e), 0]], dtype=torch.float32))
    shares = build_codec("topk", TopkConfig(classes=5, domain="probs", k=2).to_dict(), {})
    decoded = shares.decode(shares.encode(torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])))
    torch.testing.assert_close(decoded, torch.tensor([[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]]), atol=1e-3, rtol=0)


def test_top_k_of_masked_logits_stays_finite() -> None:
    """Masked classes have logits outside the range of fp16."""
    labels = torch.tensor([[-1e9, 2.0, 1e6, -1e38]])
    codec = build_codec("topk", TopkConfig(classes=4, domain="logits", k=4).to_dict(), {})
    assert codec.decode(codec.encode(labels)).tolist() == [[-65504, 2, 65504, -65504]]


def test_an_unknown_codec_is_refused_before_the_dump_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="codec is 'zip'; it must be one of vqae, sparse, topk, raw"):
        fit(tmp_path / "none.npy", FitConfig(codec="zip"))
