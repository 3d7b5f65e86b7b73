"""The output head of a model's file or folder: which tensor, what follows it, and the norm in front of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vqlabel.errors import BadInput, NoSuchFile, UsageError
from vqlabel.labels.text.head import StoredHead, open_head

V, D = 12, 4
WEIGHT = torch.arange(V * D, dtype=torch.float32).reshape(V, D) / 7
NORM = torch.linspace(0.5, 2, D)


def model(folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A folder as transformers saves it."""
    folder.mkdir(exist_ok=True)
    tensors = tensors or {"lm_head.weight": WEIGHT, "model.norm.weight": NORM}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5, **(config or {})}))
    return folder


def test_a_file_a_tensor_of_it_and_a_folder_give_the_same_head(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    paths = (folder, folder / "model.safetensors", f"{folder}/model.safetensors:lm_head.weight", f"{folder}:lm_head.weight")
    heads = [open_head(path) for path in paths]
    for head in heads:
        assert (head.name, head.dtype, head.vocabulary, head.width, head.scale, head.soft_cap, head.bias) == (
            "lm_head.weight",
            "F32",
            V,
            D,
            1.0,
            None,
            None,
        )
        assert (head.rows(2, 5) == WEIGHT[2:5].numpy()).all()
        assert isinstance(head.weight, np.memmap)
    assert len({head.sha256 for head in heads}) == 1


def test_the_sum_is_of_the_stored_bytes_their_type_and_shape(tmp_path: Path) -> None:
    weight, bias = WEIGHT.bfloat16(), torch.arange(V, dtype=torch.float32)
    head = open_head(model(tmp_path, {}, {"lm_head.weight": weight, "lm_head.bias": bias}), vocab=10)
    expected = hashlib.sha256(
        b"weight BF16 [12, 4]\n" + weight.view(torch.uint16).numpy().tobytes() + b"bias F32 [12]\n" + bias.numpy().tobytes()
    )
    assert head.sha256 == expected.hexdigest()
    assert head.bias is not None
    assert head.bias.tolist() == [*range(10)]


def test_bf16_is_read_exactly(tmp_path: Path) -> None:
    head = open_head(model(tmp_path, {}, {"lm_head.weight": WEIGHT.bfloat16()}))
    assert (head.dtype, head.weight.dtype) == ("BF16", np.uint16)
    assert (head.rows(0, V) == WEIGHT.bfloat16().float().numpy()).all()


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight", "embed_out.weight", "gpt_neox.embed_in.weight", "emb.weight",
        "transformer.word_embeddings.weight", "backbone.embeddings.weight", "model.language_model.embed_tokens.weight", "output.weight",
        "model.decoder.embed_tokens.weight",
    ],
)  # fmt: skip
def test_every_usual_name_is_known(name: str, tmp_path: Path) -> None:
    tensors = {
        name: WEIGHT,
        "model.layers.3.embed_tokens.weight": WEIGHT + 1,
        "model.layers.0.output.weight": WEIGHT,
        "score.bias": NORM,
    }
    assert open_head(model(tmp_path, {}, tensors)).name == name


def test_an_output_layer_comes_before_the_embedding(tmp_path: Path) -> None:
    for name in ("lm_head.weight", "embed_out.weight"):
        tensors = {"gpt_neox.embed_in.weight": WEIGHT + 1, name: WEIGHT}
        assert open_head(model(tmp_path, {"tie_word_embeddings": False}, tensors)).name == name


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({}, {"a.weight": WEIGHT}, r"has no output head, a tensor \[V, d\] named lm_head.weight, embed_out.weight or embed_tokens.weight"),
        ({}, {"lm_head.weight": WEIGHT, "talker.lm_head.weight": WEIGHT}, r"several of its tensors may be the output head: lm_head\.weight F32 \[12, 4\], talker\.lm_head\.weight .*; name one: .*:lm_head\.weight"),
        ({}, {"a.wte.weight": WEIGHT, "b.wte.weight": WEIGHT}, "several of its tensors may be the output head"),
        ({"tie_word_embeddings": False}, {"model.embed_tokens.weight": WEIGHT}, "has tie_word_embeddings = false, but it has no output head, only model.embed_tokens"),
        ({"tie_word_embeddings": True}, {"model.embed_tokens.weight": WEIGHT, "lm_head.weight": WEIGHT + 1}, r"has tie_word_embeddings = true, but lm_head.* differ; name the head"),
        ({}, {"lm_head.weight": WEIGHT.to(torch.int8)}, r"lm_head\.weight I8 \[12, 4\] is no output head; a head is \[V, d\] of F16, BF16, F32: save it unquantised"),
        ({}, {"lm_head.weight": WEIGHT, "lm_head.bias": NORM}, r"lm_head\.bias F32 \[4\] does not fit lm_head\.weight F32 \[12, 4\]; a bias is \[V\]"),
    ],
    ids=range(7),
)  # fmt: skip
def test_a_model_without_one_clear_head_is_refused(config: Any, tensors: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        open_head(model(tmp_path, config, tensors))


def test_equal_tied_weights_may_be_stored_twice(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": WEIGHT, "lm_head.weight": WEIGHT.clone()}
    assert open_head(model(tmp_path, {"tie_word_embeddings": True}, tensors)).name == "lm_head.weight"


def test_a_name_that_is_not_there_or_no_path_is_refused(tmp_path: Path) -> None:
    model(tmp_path)
    with pytest.raises(UsageError, match=r"has no tensor 'x'; its output head may be lm_head\.weight F32 \[12, 4\]"):
        open_head(f"{tmp_path}/model.safetensors:x")
    with pytest.raises(NoSuchFile, match=r"nowhere: no such file or directory; pass model\.safetensors, "):
        open_head(tmp_path / "nowhere")
    (tmp_path / "a.bin").touch()
    with pytest.raises(BadInput, match=r"a\.bin: is not a \.safetensors file; convert the model"):
        open_head(tmp_path / "a.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        BadInput, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json; if its weights are in \.bin files"
    ):
        open_head(tmp_path)


def test_a_sharded_model_is_read_by_its_index(tmp_path: Path) -> None:
    save_file({"model.norm.weight": NORM}, tmp_path / "a-00001-of-00002.safetensors")
    save_file({"lm_head.weight": WEIGHT}, tmp_path / "a-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    files = {"model.norm.weight": "a-00001-of-00002.safetensors", "lm_head.weight": "a-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": files}))
    head = open_head(tmp_path)
    assert head.name == "lm_head.weight"
    assert head.norm is not None
    for name, message in (
        ("../a.safetensors", r"weight_map names '\.\./a\.safetensors'; it must name \.safetensors files beside it"),
        (3, "weight_map names '3'"),
        ("b.safetensors", r"names b\.safetensors, which is not there; download it again"),
    ):
        index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
        with pytest.raises(BadInput, match=rf"index\.json: {message}"):
            open_head(tmp_path)
    index.write_text("[")
    with pytest.raises(BadInput, match=r"index\.json: is not a JSON object"):
        open_head(tmp_path)


@pytest.mark.parametrize(
    ("config", "scale", "cap"),
    [
        ({}, 1.0, None),
        ({"model_type": "granite", "logits_scaling": 8.0}, 1 / 8, None),
        ({"model_type": "granitemoehybrid", "logits_scaling": 3}, 1 / 3, None),
        ({"model_type": "cohere2", "logit_scale": 0.25}, 0.25, None),
        ({"model_type": "cohere"}, 0.0625, None),
        ({"model_type": "hyperclovax", "logits_scaling": 0.5}, 0.5, None),
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.04}, 0.04, None),
        ({"model_type": "minicpm3", "dim_model_base": 256, "hidden_size": 2560}, 0.1, None),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, 1.0, 30.0),
        ({"model_type": "gemma2", "final_logit_softcapping": None}, 1.0, None),
        ({"model_type": "gemma2"}, 1.0, 30.0),
        ({"model_type": "recurrent_gemma", "logits_soft_cap": 20.0}, 1.0, 20.0),
        ({"model_type": "llava", "text_config": {"model_type": "granite", "logits_scaling": 4.0}}, 0.25, None),
        ({"model_type": "mpt", "logit_scale": None}, 1.0, None),
    ],
    ids=str,
)
def test_scale_and_soft_cap_follow_the_model_type(config: dict[str, Any], scale: float, cap: float | None, tmp_path: Path) -> None:
    head = open_head(model(tmp_path, config))
    assert (head.scale, head.soft_cap) == (pytest.approx(scale), cap)


def test_a_scale_of_unknown_meaning_is_refused_unless_it_is_passed(tmp_path: Path) -> None:
    folder = model(tmp_path, {"model_type": "newmodel", "logits_scaling": 8.0})
    with pytest.raises(
        BadInput,
        match=r"config\.json: has logits_scaling = 8\.0 for the model type 'newmodel'; whether .* is not known: pass scale=",
    ):
        open_head(folder)
    assert open_head(folder, scale=0.125, soft_cap=20.0) is not None
    for config in (
        {"model_type": "granite", "logits_scaling": "8"},
        {"model_type": "granite", "logits_scaling": 0},
        {"final_logit_softcapping": float("inf")},
    ):
        with pytest.raises(
            BadInput, match=r"config\.json: (logits_scaling|final_logit_softcapping) is .*; it must be a positive number"
        ):
            open_head(model(tmp_path, config))
    with pytest.raises(UsageError, match=r"scale is -1\.0; it must be a positive number"):
        open_head(folder, scale=-1.0)


def test_padded_rows_are_cut_with_a_note(tmp_path: Path) -> None:
    folder = model(tmp_path, {"vocab_size": 11})
    note = "{}: lm_head.weight has 12 rows for a vocabulary of {}; the last {} are padding, and are cut"
    for vocab, used in ((None, 11), (9, 9), (12, 12)):
        head = open_head(folder, vocab=vocab)
        assert (head.vocabulary, len(head.weight)) == (used, used)
        assert head.notes == ([] if used == V else [note.format(folder, used, V - used)])
    with pytest.raises(UsageError, match=r"vocab is 13; it must be 2\.\.12, the rows of lm_head\.weight"):
        open_head(folder, vocab=13)


def normed(head: StoredHead, hidden: torch.Tensor) -> torch.Tensor:
    assert head.norm is not None
    return torch.from_numpy(head.norm(hidden.numpy()))


@pytest.mark.parametrize(
    ("config", "tensors", "expected"),
    [
        ({}, {"model.norm.weight": NORM}, lambda h: torch.nn.functional.rms_norm(h, (D,), NORM, 1e-5)),
        ({"model_type": "gemma2"}, {"model.norm.weight": NORM}, lambda h: torch.nn.functional.rms_norm(h, (D,), NORM + 1, 1e-5)),
        ({"model_type": "qwen3_5_text"}, {"model.norm.weight": NORM}, lambda h: torch.nn.functional.rms_norm(h, (D,), NORM + 1, 1e-5)),
        ({"model_type": "gpt2", "rms_norm_eps": None, "layer_norm_epsilon": 1e-3}, {"transformer.ln_f.weight": NORM, "transformer.ln_f.bias": -NORM}, lambda h: torch.nn.functional.layer_norm(h, (D,), NORM, -NORM, 1e-3)),
        ({"model_type": "cohere", "rms_norm_eps": None, "layer_norm_eps": 1e-4}, {"model.norm.weight": NORM}, lambda h: torch.nn.functional.layer_norm(h, (D,), NORM, None, 1e-4)),
        ({"model_type": "mamba", "rms_norm_eps": None, "layer_norm_epsilon": 1e-3}, {"backbone.norm_f.weight": NORM}, lambda h: torch.nn.functional.rms_norm(h, (D,), NORM, 1e-3)),
    ],
    ids=range(6),
)  # fmt: skip
def test_the_final_norm_is_that_of_the_model(config: Any, tensors: Any, expected: Any, tmp_path: Path) -> None:
    inside = {"model.layers.0.norm.weight": NORM + 2, "vision.norm.weight": torch.ones(D + 1)}
    head = open_head(model(tmp_path, config, {"lm_head.weight": WEIGHT, **tensors, **inside}))
    hidden = torch.randn(5, D, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.testing.assert_close(normed(head, hidden), expected(hidden))


def test_a_norm_of_unknown_form_or_of_which_there_are_two_is_not_used(tmp_path: Path) -> None:
    unknown = model(tmp_path, {"model_type": "new", "rms_norm_eps": None, "layer_norm_eps": 1e-5})
    assert open_head(unknown).norm is None
    assert open_head(model(tmp_path, {}, {"lm_head.weight": WEIGHT, "a.norm.weight": NORM, "b.norm.weight": NORM})).norm is None
