"""A `.vql` -> one HTML page that describes it: bytes, distortion, calibration, codes, sample labels, how it was made.

The page is one file: plots are inline SVG, and there is no script, font or link to anything outside.
"""

import html
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.labels import LabelSource
from vqlabel.labels.open import is_topk_layout, open_labels
from vqlabel.metrics.judgement import topk_words
from vqlabel.progress import Progress, silent
from vqlabel.report import stats
from vqlabel.report.plots import draw_account, draw_calibration, inline_svg
from vqlabel.report.plots.samples import draw_counts, draw_samples, draw_slots
from vqlabel.storage.formats import PAGE
from vqlabel.storage.targets import atomic_target, check_target
from vqlabel.version import __version__
from vqlabel.vql.file import VqlFile
from vqlabel.vql.text.file import TextVqlFile, is_text

SAMPLES = 6  # labels that are drawn
COUNTED_LABELS = 65_536  # whose numbers of codes are drawn
NEEDS_DUMP = "Give the dump to measure this: <code>vqlabel report FILE -o PAGE --against DUMP</code>."
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: .8rem 0 } td, th { padding: .15rem .9rem .15rem 0; text-align: right; font-weight: normal }
th { color: #666 } td:first-child, th:first-child { text-align: left } svg { max-width: 100%; height: auto }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto } .good { color: #22703c } .mixed { color: #8a5a00 } .poor { color: #a02020 }
"""


def write_report(
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    against: str | PathLike[str] | LabelSource | None = None,
    head: str | PathLike[str] | None = None,
    layout: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write a page about a `.vql`, of labels of images or of documents.

    Args:
        out: the .html file.
        against: the dump, which adds distortion, calibration and sample labels.
        head: of documents: the teacher's output head, a path for `open_head`.
        layout: of the dump; None: it is recognised.

    Returns:
        path, bytes, sections (titles), and stats, of the file.

    Raises:
        MissingExtra: matplotlib is not installed.
        TargetExists: `out` exists and `overwrite` is false.
        UsageError, BadContainer: see `stats`.
    """
    check_target(out, PAGE, overwrite=overwrite)
    describe = _describe_text if is_text(path) else _describe_images
    found, facts, made = describe(path, against, head, layout, device, progress)
    sections = {
        "Summary": _pairs(facts) + _judgement(found),
        "Where every byte went": _bytes_section(found),
        "Distortion": _distortion(found),
        "Calibration": _calibration(found),
        "Use of the codes": found.pop("codes_section"),
        "Sample labels": _samples(found.pop("samples", [])),
        "How it was made": made,
    }
    title = f"{Path(path).name}: compressed soft labels"
    body = "".join(f"<section><h2>{name}</h2>\n{content}</section>\n" for name, content in sections.items())
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}<p>vqlabel {__version__}</p></body></html>\n"
    )
    with atomic_target(Path(out), PAGE, overwrite=overwrite) as partial:
        Path(partial).write_text(page, encoding="utf-8")
    return {"path": str(out), "bytes": len(page.encode()), "sections": list(sections), "stats": found}


_Description = tuple[dict[str, Any], dict[str, str], str]  # stats with samples and codes_section; facts; how it was made


def _describe_images(path: Any, against: Any, head: Any, layout: str | None, device: str, progress: Progress) -> _Description:
    from vqlabel.report.samples import sample_labels

    file = VqlFile(path)
    source = against
    if against is not None and not isinstance(against, LabelSource):
        classes = file.classes if file.about.support is not None and is_topk_layout(file.about.layout) else None
        source = open_labels(against, layout, file.label["domain"], classes=classes)
    found = stats(path, against=source, device=device, progress=progress)
    if source is not None:
        found["samples"] = sample_labels(file, source, SAMPLES, device)
    used = ""
    if found["perplexity"]:
        used = _figure(draw_slots(found["perplexity"], found["codebook_size"]), "slots")
        used += "<p>Perplexity: the number of codes that would be as hard to predict if all were equally frequent.</p>"
    found["codes_section"] = used or "<p>This codec has no codebooks.</p>"
    bits = found["bits_per_label"]
    facts = {
        "labels": f"{found['records']:,} of {found['classes']:,} classes, {file.label['domain']} in {found['dtype']}",
        "epochs": f"{len({place.epoch for place in file.columns.places}):,}",
        "size": f"{found['bytes']['total']:,} bytes",
        "codec": f"{found['codec']}, {found['code_bits']:g} code bits per label",
        "bits per label": f"{bits['labels']:.2f}, {bits['all_in']:.2f} with augmentation and order",
        "of fp16": f"1/{found['ratio_to_fp16'].get('labels', 0):.1f}",
    }
    command = f"vqlabel pack DUMP -o {Path(path).name} --codec {found['codec']}"
    if isinstance(file.config, VqaeConfig):
        command += f" {_sizes(file.config)} --temperature {','.join(f'{t:g}' for t in file.config.temperatures)}"
    return found, facts, _made({"source": file.source, "codec": file.codec}, Path(path).name, command)


def _sizes(config: VqaeConfig) -> str:
    """Options of a fit that lead to the sizes of a codec."""
    sizes: dict[str, object] = {"slots": config.slots, "codebook-size": config.codebook_size}
    sizes |= {"latent": config.latent, "weight-bits": config.weight_bits}
    if config.code_width != config.latent:
        sizes["code-width"] = config.code_width
    if config.prior is not None:
        sizes |= {"image-width": config.prior.image_width, "hidden": config.prior.hidden}
    options = " ".join(f"--{name} {value}" for name, value in sizes.items())
    return f"{options} {'--no-prior' if config.prior is None else '--prior'}"


def _describe_text(path: Any, against: Any, head: Any, layout: str | None, device: str, progress: Progress) -> _Description:
    from vqlabel.report.text.stats import stats_text

    file = TextVqlFile(path)
    found = stats_text(path, against=against, head=head, samples=SAMPLES, device=device, progress=progress)
    stored = (
        file.container.rows(file.config.streams[0].name, 0, min(file.rows, COUNTED_LABELS)) if file.config.count_limits else None
    )
    found["codes_section"] = "<p>Every label has as many codes.</p>"
    if stored is not None and len(stored):
        titles = ("codes", "exact ids", "further ids")
        limits = file.config.count_limits
        counts = {titles[i]: [int((stored[:, i] == n).sum()) for n in range(limit + 1)] for i, limit in enumerate(limits[:3])}
        found["codes_section"] = _figure(draw_counts(counts), "counts")
    facts = {
        "labels": f"{found['labels']:,} of {found['documents']:,} documents, {found['vocabulary']:,} tokens in the vocabulary",
        "size": f"{found['bytes']:,} bytes",
        "codec": found["codec"],
        "bits per label": f"{found['bits_per_label']['codes']:.2f} of codes, {found['bits_per_label']['all_in']:.2f} all-in",
        "of fp16": f"1/{found['ratio_to_fp16']:.1f}",
    }
    command = f"vqlabel pack DUMP --head HEAD -o {Path(path).name} --bits {found['bits_per_label']['codes']:.0f}"
    return found, facts, _made({"text": file.text, "codec": file.codec}, Path(path).name, command)


def _made(metadata: dict[str, Any], name: str, command: str) -> str:
    """What the file records of its origin, and commands; the one that made it follows from the codec."""
    rows = {f"{part}: {key}": _words(value) for part, values in metadata.items() for key, value in values.items()}
    commands = f"{command}    # makes such a file\nvqlabel verify {name}\nvqlabel stats {name} --against DUMP\nvqlabel unpack {name} -o decoded"
    return f"<p>The file records:</p>{_pairs(rows)}<p>Commands:</p><pre>{html.escape(commands)}</pre>"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items() if inner is not None)
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 400 else f"{text[:400]} …"


def _judgement(found: dict[str, Any]) -> str:
    verdict = found.get("baselines", {}).get("judgement")
    if verdict is None:
        return f"<p>{NEEDS_DUMP}</p>" if "distortion" not in found else ""
    return f'<p class="{verdict["verdict"]}"><strong>These labels are {html.escape(verdict["sentence"])}.</strong></p>'


def _bytes_section(found: dict[str, Any]) -> str:
    labels = max(1, found.get("records", found.get("labels", 0)))
    total = found["bytes"]["total"] if isinstance(found["bytes"], dict) else found["bytes"]
    rows = [
        (
            row["part"],
            row.get("group", row["grows"]),
            f"{row['bytes']:,}",
            f"{8 * row['bytes'] / labels:.3f}",
            f"{100 * row['bytes'] / total:.1f}",
        )
        for row in found["rows"]
    ]
    rows.append(("total", "", f"{total:,}", f"{8 * total / labels:.3f}", "100.0"))
    return _figure(draw_account(found), "bytes") + _table(("part", "group", "bytes", "bits/label", "%"), rows)


def _distortion(found: dict[str, Any]) -> str:
    if "distortion" not in found:
        return f"<p>{NEEDS_DUMP}</p>"
    text = ""
    if "baselines" in found:
        parts = found["baselines"]
        names, topk, gain = list(parts["kl"]), parts["topk"], parts.get("gain")
        rows = {"one mean label for all": parts["mean_label"], topk_words(topk): topk}
        rows = ({"the same codes, --gain 1": parts["kl"]} if gain else {}) | rows
        rows = {f"these labels, gain {gain:.2f}" if gain else "these labels": found["distortion"] if gain else parts["kl"]} | rows
        cells = [(name, *(_number(values.get(kl)) for kl in names)) for name, values in rows.items()]
        text = _table(("", *(f"KL at T = {name.rpartition('_T')[2]}" for name in names)), cells)
        if gain:
            text += "<p>A gain makes labels unbiased on purpose, for which students are better; their KL is then not the least.</p>"
    return text + _pairs({name: _number(value) for name, value in found["distortion"].items()})


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _calibration(found: dict[str, Any]) -> str:
    if not found.get("calibration"):
        return f"<p>{NEEDS_DUMP}</p>" if "distortion" not in found else "<p>Not measured for these labels.</p>"
    words = (
        "A label lies on the grey line if its decoded top-1 probability is that of the teacher. A slope of 1 means unbiased labels."
    )
    return f"{_figure(draw_calibration(found), 'calibration')}<p>{words}</p>"


def _samples(samples: list[dict[str, Any]]) -> str:
    return _figure(draw_samples(samples), "samples") if samples else f"<p>{NEEDS_DUMP}</p>"


def _figure(figure: Any, name: str) -> str:
    return f"<figure>{inline_svg(figure, name)}</figure>"


def _pairs(values: dict[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{rows}</table>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
