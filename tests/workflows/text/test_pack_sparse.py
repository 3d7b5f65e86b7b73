"""A dump of top-k labels of documents -> a `.vql` -> labels in a training loop; what it keeps and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import Forge
from pretended_cuda import pretended_cuda
from text_dumps import EXACT, packed, write_table
from typer.testing import CliRunner

import vqlabel
from tests.text_corpus import VOCABULARY, small_split, top_k, write_head, write_hidden_states, write_prompt_logprobs
from vqlabel.cli import app
from vqlabel.codecs.sparse.config import SparseConfig
from vqlabel.codecs.sparse.documents import SparseDocuments
from vqlabel.config import TextFitConfig
from vqlabel.errors import BadContainer, BadLabels, UsageError
from vqlabel.labels.sparse import SparseLabels
from vqlabel.labels.text.documents import Documents
from vqlabel.labels.text.open import open_text_labels
from vqlabel.labels.text.source import TextSource
from vqlabel.report.text.account import account
from vqlabel.report.text.compare import compare_text
from vqlabel.vql.text.file import as_fields
from vqlabel.workflows.text import encode
from vqlabel.workflows.text.open import open_text_dump
from vqlabel.workflows.text.tune import TextGoal, tune_text

K, STEP = 6, 0.5
MAX_KL = STEP**2 / 24 * 1.5  # nats: uniform rounding errors of a step; labels of few tokens vary
QUICK = TextFitConfig(slots=2, codebook_size=8, ids=2, width=16, window=2, epochs=1)


def responses(folder: Path, rest: str | None = None) -> TextSource:
    return open_text_labels(write_prompt_logprobs(folder / "responses.jsonl", small_split(30), K), vocab=VOCABULARY, rest=rest)


def raw(folder: Path, rest: str | None = None) -> TextSource:
    (folder / "dump").mkdir()
    texts, ids, values = ([part.tolist() for part in column] for column in zip(*top_k(small_split(30), K), strict=True))
    write_table(folder / "dump" / "data_0.parquet", {"input_ids": texts, "token_ids": ids, "top_values": values})
    return open_text_labels(folder / "dump", vocab=VOCABULARY, rest=rest)


def compressed(folder: Path, rest: str | None = None) -> TextSource:
    documents = top_k(small_split(30), K)
    (folder / "dump").mkdir()
    columns = {
        "input_ids": [tokens.tolist() for tokens, _, _ in documents],
        "bytepacked_indices": [packed(ids, 6) for _, ids, _ in documents],
        "compressed_logprobs": [[list(row.astype("<f4").tobytes()) for row in values] for _, _, values in documents],
    }
    write_table(folder / "dump" / "data_0.parquet", columns)
    (folder / "dump" / "compression_config.json").write_text(json.dumps({**EXACT, "d": VOCABULARY, "k": K, "exact_k": K}))
    return open_text_labels(folder / "dump", rest=rest)


FORMS = {"prompt_logprobs": responses, "distillkit": raw, "distillkit, compressed": compressed}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    vqlabel.pack_text(responses(folder), folder / "labels.vql")
    return folder / "labels.vql"


def stored(source: TextSource) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tokens of the documents that have labels, and all labels [n, V] as the dump has them, renormalised."""
    documents = [document for document in source if len(document.rows)]
    rows = SparseLabels.concatenate([document.rows for document in documents if isinstance(document.rows, SparseLabels)])
    dense = torch.from_numpy(rows.as_dense()).double()
    return [torch.from_numpy(document.tokens) for document in documents], dense / dense.sum(1, keepdim=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rest", ["uniform", "zero"])
def test_labels_of_every_form_keep_their_tokens_and_their_probabilities_to_a_step(tmp_path: Path, form: str, rest: str) -> None:
    source = FORMS[form](tmp_path, rest)
    result = vqlabel.pack_text(source, tmp_path / "labels.vql")
    texts, p = stored(source)
    labels = vqlabel.open_text(tmp_path / "labels.vql")
    q = torch.cat([labels.of(tokens[None]).dense() for tokens in texts]).double()
    assert (result["labels"], labels.file.label["domain"], labels.file.codec["kind"]) == (len(p), "probs", "sparse")
    assert torch.equal(p.argmax(1), q.argmax(1))
    assert torch.equal(p.topk(K).indices.sort(1).values, q.topk(K).indices.sort(1).values)
    assert bool((q > 0).all()) == (rest == "uniform")
    kl = (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1).mean().item()
    assert 0 < kl < MAX_KL
    assert 0 < result["fit"]["held_out"]["kl"] < 2 * MAX_KL  # of a few labels
    assert result["fit"]["config"]["rest"] == rest


def test_a_batch_is_decoded_by_each_of_its_views(file: Path) -> None:
    labels, documents = vqlabel.open_text(file), top_k(small_split(30), K)
    tokens = torch.from_numpy(documents[3][0])[None]
    batch = labels.of(tokens)
    p, (ids, values) = batch.dense(), batch.topk(K)
    torch.testing.assert_close(batch.probs(slice(1, 3), temperature=2.0), p[1:3].sqrt() / p[1:3].sqrt().sum(1, keepdim=True))
    np.testing.assert_array_equal(np.sort(ids.numpy(), 1), np.sort(documents[3][1], 1))
    assert (values.diff(dim=1) <= 0).all()
    columns = labels.distillkit(tokens[0], k=K)
    np.testing.assert_array_equal(columns["token_ids"], ids)
    np.testing.assert_array_equal(columns["input_ids"], tokens[0, :-1])
    hidden = torch.zeros(1, tokens.shape[1], 4, requires_grad=True)
    loss = vqlabel.kd_loss(hidden, torch.zeros(VOCABULARY, 4), batch)
    assert loss.item() == pytest.approx(float((p * (p * VOCABULARY).log()).sum(1).mean()), rel=1e-4)
    with pytest.raises(UsageError, match="no hidden states of the teacher: they were packed from logits or top-k labels"):
        labels.hidden(tokens[0])


def test_labels_without_a_tail_can_be_learned_from(tmp_path: Path) -> None:
    vqlabel.pack_text(responses(tmp_path, "zero"), tmp_path / "labels.vql")
    labels, tokens = (
        vqlabel.open_text(tmp_path / "labels.vql"),
        torch.from_numpy(small_split(30).documents.take(np.array([3]))[0].tokens),
    )
    batch, hidden = labels.of(tokens[None]), torch.ones(1, len(tokens), 4, requires_grad=True)
    for direction in ("forward", "reverse"):
        loss = vqlabel.kd_loss(hidden, torch.randn(VOCABULARY, 4), batch, direction=direction)
        loss.backward()
        assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_a_document_is_decoded_by_itself_and_by_references_without_a_corpus(file: Path) -> None:
    labels, texts = vqlabel.open_text(file), [torch.from_numpy(tokens) for tokens, ids, _ in top_k(small_split(30), K) if len(ids)]
    together = labels.decode(Documents.of([tokens.numpy() for tokens in texts])).logits()
    alone = torch.cat([labels.of(tokens[None]).logits(slice(None)) for tokens in texts])
    assert torch.equal(together, alone)
    chosen = [tokens for tokens in texts if len(tokens) > 4][:2]
    references = torch.stack([torch.from_numpy(labels.attach({"input_ids": tokens.numpy()})["vqlabel"])[1:4] for tokens in chosen])
    batch = labels.at(references)
    expected = torch.cat([labels.of(tokens[None]).logits(slice(1, 4)) for tokens in chosen])
    assert torch.equal(batch.logits(slice(None)), expected)


def test_a_rate_in_bits_keeps_fewer_tokens_or_coarser_steps(tmp_path: Path) -> None:
    source, sizes = responses(tmp_path), []
    for bits in (12, 24, None):
        result = vqlabel.pack_text(source, tmp_path / "labels.vql", TextFitConfig(bits=bits), overwrite=True)
        sizes.append(result["fit"]["held_out"]["bits"])
        assert bits is None or sizes[-1] <= bits * 1.1
    assert sizes == sorted(sizes)
    with pytest.raises(UsageError, match=r"bits is 0\.5; it must be 1 or more for top-k labels"):
        vqlabel.pack_text(source, tmp_path / "labels.vql", TextFitConfig(bits=0.5), overwrite=True)


def test_a_token_of_probability_0_stays_one_of_the_k(tmp_path: Path) -> None:
    path = write_prompt_logprobs(tmp_path / "responses.jsonl", small_split(30), K)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for row in line["prompt_logprobs"][1:2]:
            max(row.values(), key=lambda entry: entry["rank"])["logprob"] = -9999
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_text_labels(path, vocab=VOCABULARY, rest="zero")
    vqlabel.pack_text(source, tmp_path / "labels.vql")
    labels = vqlabel.open_text(tmp_path / "labels.vql")
    for document in source:
        if len(document.rows):
            assert isinstance(document.rows, SparseLabels)
            ids = labels.of(torch.from_numpy(document.tokens)[None]).topk(K)[0]
            np.testing.assert_array_equal(np.sort(ids.numpy(), 1), np.sort(document.rows.ids, 1))


def test_a_row_of_fewer_tokens_than_others_is_refused(tmp_path: Path) -> None:
    path = write_prompt_logprobs(tmp_path / "responses.jsonl", small_split(30), K)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    row = lines[1]["prompt_logprobs"][1]
    gold = str(lines[1]["prompt_token_ids"][1])
    lines[1]["prompt_logprobs"][1] = {token: entry for token, entry in row.items() if token == gold or entry["rank"] <= K - 2}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadLabels, match="all requests of a dump must ask for the same number"):
        open_text_labels(path, vocab=VOCABULARY)


def test_what_does_not_apply_to_top_k_labels_is_refused(tmp_path: Path) -> None:
    source, head, out = responses(tmp_path), write_head(tmp_path), tmp_path / "labels.vql"
    with pytest.raises(UsageError, match=r"--head .*: must be left out: .* holds top-k labels, and probabilities need no head"):
        vqlabel.pack_text(source, out, head=head)
    for name, value in (("slots", 4), ("embed_head", False), ("prior", False)):
        with pytest.raises(UsageError, match=f"{name} is {value}; it must be left out: .* holds top-k labels"):
            vqlabel.pack_text(source, out, TextFitConfig(**{name: value}))  # type: ignore[arg-type]
    assert not out.exists()


def test_a_codec_file_packs_a_dump_of_the_same_vocabulary_k_and_tail(tmp_path: Path) -> None:
    source, codec = responses(tmp_path), tmp_path / "codec.safetensors"
    fitted, report = vqlabel.fit_text(source, out=codec)
    assert isinstance(fitted, SparseDocuments)
    direct = vqlabel.pack_text(source, tmp_path / "direct.vql")
    result = vqlabel.pack_text(source, tmp_path / "labels.vql", codec=codec)
    assert (tmp_path / "direct.vql").read_bytes() == (tmp_path / "labels.vql").read_bytes()
    assert result["fit"]["held_out"] == direct["fit"]["held_out"] == report["held_out"]
    assert result["fit"]["codec_file"] == str(codec)
    with pytest.raises(UsageError, match=r"bits is 20\.0; it must be left out: a fitted codec sparse has one rate"):
        vqlabel.pack_text(source, tmp_path / "a.vql", TextFitConfig(bits=20), codec=codec)
    for options, message in (
        ({"vocab": VOCABULARY + 1}, "has a vocabulary of 61; the codec was fitted for 60"),
        ({"vocab": VOCABULARY, "k": 3}, "have 3 tokens and a uniform tail; the codec keeps 6 and a uniform tail"),
        ({"vocab": VOCABULARY, "rest": "zero"}, "have 6 tokens and a zero tail; the codec keeps 6 and a uniform tail"),
    ):
        other = open_text_labels(tmp_path / "responses.jsonl", **options)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=message):
            vqlabel.pack_text(other, tmp_path / "a.vql", codec=codec)


def test_codecs_of_other_labels_are_refused(tmp_path: Path) -> None:
    source, sparse = responses(tmp_path), tmp_path / "sparse.safetensors"
    vqlabel.fit_text(source, out=sparse)
    dump, head = write_hidden_states(tmp_path / "dump", small_split(30)), write_head(tmp_path)
    with pytest.raises(UsageError, match=r"codec sparse does not code the labels of .*, hidden states or logits: fit one"):
        vqlabel.pack_text(dump, tmp_path / "a.vql", head=head, codec=sparse)
    vqae, _ = vqlabel.fit_text(dump, QUICK, head=head)
    with pytest.raises(UsageError, match=r"codec token_vqae does not code the labels of .*, top-k labels: fit one"):
        vqlabel.pack_text(source, tmp_path / "a.vql", codec=vqae)


def test_the_commands_pack_fit_and_describe_such_dumps(tmp_path: Path) -> None:
    dump, out = write_prompt_logprobs(tmp_path / "responses.jsonl", small_split(30), K), tmp_path / "labels.vql"

    def run(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="vqlabel")
        assert result.exit_code == 0, result.output
        return result.stdout

    printed = run("pack", dump, "-o", out, "--vocab", VOCABULARY, "--k", 4)
    assert "held out (" in printed
    assert "KL of the dump's labels 0.0" in printed
    assert "the 4 likeliest of a label kept, zero tail" in run(
        "fit", dump, "-o", tmp_path / "codec.safetensors", "--vocab", VOCABULARY, "--k", 4, "--rest", "zero"
    )
    assert json.loads(run("info", out, "--json"))["codec"]["config"]["k"] == 4
    assert json.loads(run("info", tmp_path / "codec.safetensors", "--json"))["report"]["labels"]["train"] > 0
    assert "all valid" in run("verify", out)
    figures = json.loads(run("stats", out, "--json"))
    assert sum(row["bytes"] for row in figures["rows"]) == figures["bytes"] == out.stat().st_size
    result = CliRunner().invoke(app, ["unpack", str(out), "-o", str(tmp_path / "a.npy")], prog_name="vqlabel")
    assert "has labels of documents, not of images" in result.stderr
    result = CliRunner().invoke(app, ["pack", str(dump), "-o", str(out)], prog_name="vqlabel")
    assert "exists; pass --overwrite" in result.stderr
    result = CliRunner().invoke(app, ["pack", str(dump), "-o", str(tmp_path / "a.vql")], prog_name="vqlabel")
    assert "must be passed" in result.stderr


def test_the_account_names_neighbour_lists(tmp_path: Path) -> None:
    split = small_split(120)
    source = open_text_labels(write_prompt_logprobs(tmp_path / "responses.jsonl", split, K), vocab=VOCABULARY)
    result = vqlabel.pack_text(source, tmp_path / "labels.vql")
    assert (result["fit"]["config"]["neighbours"] > 0) == (
        "neighbour lists" in {r["part"] for r in account(result["path"])["rows"]}
    )


def test_a_device_encodes_and_decodes_as_the_cpu_does(tmp_path: Path) -> None:
    opened = open_text_dump(responses(tmp_path), None)
    codec, _ = vqlabel.fit_text(opened.source)
    group = [opened.source.read(index) for index in range(5)]
    texts = Documents.of([document.tokens for document in group])
    expected = np.concatenate(encode._encode(opened, codec, group, "cpu"))
    logits = codec.decode(torch.from_numpy(as_fields(expected)), texts).logits()
    with pretended_cuda(), encode._codec_on(codec, "cuda"):
        fields = np.concatenate(encode._encode(opened.to("cuda"), codec, group, "cuda"))
        decoded = codec.decode(torch.from_numpy(as_fields(fields)).to("cuda"), texts).logits().cpu()
    np.testing.assert_array_equal(fields, expected)
    assert torch.equal(decoded, logits)


def ids_beyond(forge: Forge, config: SparseConfig) -> None:
    rows = forge.rows("codes")
    rows[:, 1] = VOCABULARY + 2
    forge.put("codes", rows, config.widths)


def id_twice(forge: Forge, config: SparseConfig) -> None:
    rows = forge.rows("codes")
    rows[:, K - 1], rows[:, -1] = rows[:, K - 2], 0  # the last field is no count of ids
    forge.put("codes", rows, config.widths)


def other_domain(forge: Forge, config: SparseConfig) -> None:
    forge.metadata["vql.label"]["domain"] = forge.metadata["vql.codec"]["config"]["domain"] = "logits"
    forge.metadata["vql.codec"]["config"] |= {"rest": "zero", "rest_bits": 0}
    forge.put("codes", forge.rows("codes")[:, :-1], config.widths[:-1])


def more_tokens(forge: Forge, config: SparseConfig) -> None:
    forge.metadata["vql.codec"]["config"]["k"] = VOCABULARY


def no_lists(forge: Forge, config: SparseConfig) -> None:
    forge.metadata["vql.codec"]["config"]["neighbours"] = 9


def codec_of_images(forge: Forge, config: SparseConfig) -> None:
    forge.metadata["vql.codec"] = {"kind": "topk", "config": {"classes": VOCABULARY, "domain": "probs", "k": K}}
    forge.put("codes", np.zeros((len(forge.rows("codes")), 2 * K)), [6] * K + [16] * K)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ids_beyond, "a code or count of 62 is outside 0..59"),
        (id_twice, "has an id twice"),
        (other_domain, "domain is logits; sparse labels of documents are probs"),
        (more_tokens, "gaps is .*must be 12 counts that add up to k - 1 = 59"),
        (no_lists, "the codec has no tensor 'neighbours'"),
        (codec_of_images, "codec topk does not code the labels of documents"),
    ],
)
def test_a_forged_file_is_refused(file: Path, tmp_path: Path, change: Callable[[Forge, SparseConfig], None], message: str) -> None:
    config = vqlabel.open_text(file).codec.config
    assert isinstance(config, SparseConfig)
    assert not config.neighbours
    forge = Forge(file)
    change(forge, config)
    with pytest.raises(BadContainer, match=message):
        vqlabel.verify(forge.write(tmp_path / "forged.vql"))


def test_commands_that_need_hidden_states_refuse_top_k_labels(tmp_path: Path) -> None:
    dump = write_prompt_logprobs(tmp_path / "dump.jsonl", small_split(12), 5)
    vqlabel.pack_text(open_text_labels(dump, vocab=60), tmp_path / "labels.vql")
    for call in (
        lambda: tune_text(dump, TextGoal(kl=0.1)),
        lambda: compare_text(dump),
        lambda: vqlabel.stats_text(tmp_path / "labels.vql", against=dump),
        lambda: compare_text(open_text_labels(dump, vocab=60)),
    ):
        with pytest.raises(UsageError, match=r"dump\.jsonl: holds top-k labels; this command needs hidden states or logits"):
            call()
