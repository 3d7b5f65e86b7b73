"""The screens of `info`: what a .vql file, a codec file or a dump holds."""

from collections.abc import Iterable, Mapping
from typing import Any

from vqlabel.cli.terminal import note, size

MAX_WIDTH = 100  # columns of a screen; a narrower terminal has fewer
STORED_NAMES = {"head": "exact classes", "lift": "tail gain", "price": "lambda", "variable": "variable rate"}  # names of today
FIGURES = {"top1_agreement": "top-1", "relative_mse": "rel. MSE", "half_f1": "F1 at 0.5", "mass_kept": "mass kept"}
SHOWN_ELSEWHERE = ("classes", "domain", "temperature", "dtype")  # fields of a configuration
Rows = list[tuple[str, str]]


def show_info(found: Mapping[str, Any]) -> None:
    """One screen: what was found, in two columns; then the bytes by group."""
    rows = {"images": _rows_of_images, "documents": _rows_of_documents, "codec": _rows_of_codec, "dump": _rows_of_dump}[
        found["what"]
    ](found)
    _print_rows([("file" if found["what"] != "dump" else "dump", found["path"]), *rows])
    if "bytes_by_group" in found:
        _print_sizes(found)
    if found["what"] == "codec":
        _print_distortion(found["report"])
    for sentence in found.get("notes", ()):
        note(sentence)


def _rows_of_images(found: Mapping[str, Any]) -> Rows:
    label, config = found["label"], found["codec"]["config"]
    pruned, temperature = found["pruned"], config.get("temperature")
    rows = [
        ("labels", f"{found['records']:,} of {label['classes']:,} classes ({label['domain']}, {str(label['dtype']).lower()})"),
        ("epochs", f"{found['epochs']:,}, in {_count(found['batches'], 'batch', 'batches')} of up to {found['batch_size']:,}"),
        ("images", "unknown" if found["images"] is None else f"{found['images']:,}"),
        ("pruned", "" if pruned is None else f"{100 * pruned['keep']:g} % of the dump's labels, by {pruned['by']}, seed {pruned['seed']}"),
        ("codec", f"{found['codec']['kind']}, {found['code_bits']:g} code bits per label"),
        ("", _settings(config)),
        ("temperature", "" if not temperature else f"fitted for T = {_numbers(temperature)}"),
        ("", "" if found["temperature"] is None else f"the layout's scripts train students at T = {found['temperature']:g}"),
        ("gain", "" if found["gain"] is None else f"{found['gain']:.3f}" + " (labels as they minimise the KL)" * (found["gain"] == 1)),
        ("views", _views(found)),
        ("made by", f"{found['writer'] or 'an unknown program'}, format {found['version']}, from a dump of layout {found['source'].get('layout')}"),
        ("", _sha(found["source"].get("labels_sha256"))),
    ]  # fmt: skip
    return _merged(rows)


def _views(found: Mapping[str, Any]) -> str:
    recipe = found["recipe"]
    if isinstance(recipe, dict) and found["drawn"]:
        about = ", ".join(f"{name} {recipe[name]}" for name in ("view", "mix", "scale", "flip") if name in recipe)
        return f"generated from seed {recipe.get('seed')} ({about}): {', '.join(found['drawn'])}"
    return ", ".join(found["columns"]) or "not recorded"


def _rows_of_documents(found: Mapping[str, Any]) -> Rows:
    label, text = found["label"], found["text"]
    rows = [
        ("labels", f"{found['labels']:,} of {label['classes']:,} tokens ({label['domain']}, {str(label['dtype']).lower()})"),
        ("documents", f"{found['documents']:,}"),
        ("codec", f"{found['codec']['kind']}, {found['bits_per_label']:g} code bits per label"),
        ("", _settings(found["codec"]["config"])),
        *((name, _words(text[name])) for name in ("teacher", "tokenizer", "head")),
        ("made by", f"{found['writer'] or 'an unknown program'}, format {found['version']}"),
    ]
    return _merged(rows)


def _rows_of_codec(found: Mapping[str, Any]) -> Rows:
    config, report = found["config"], found["report"]
    temperature, gain = config.get("temperature"), report.get("gain")
    held_out = report.get("split") or _mapping(report.get("labels")).get("held_out")
    unit = "tokens" if "hidden" in config and "prior" not in config else "classes"
    rows = [
        ("size", size(found["bytes"])),
        ("codec", f"{found['codec']}, {found['code_bits']:g} code bits per label of {config.get('classes', 0):,} {unit}"),
        ("", _settings(config)),
        ("temperature", "" if not temperature else f"fitted for T = {_numbers(temperature)}"),
        ("gain", "" if not isinstance(gain, float) else f"{gain:.3f}"),
        ("held out", "" if held_out is None else f"{held_out:,} labels" if isinstance(held_out, int) else str(held_out)),
        ("fitted with", _options(_mapping(report.get("fit")), is_auto=report.get("temperature_auto") is True)),
    ]
    return _merged(rows)


def _options(config: Mapping[str, Any], *, is_auto: bool) -> str:
    """The options of a fit that were set: those that differ from their defaults."""
    import dataclasses

    from vqlabel.config import FitConfig

    defaults = {field.name: field.default for field in dataclasses.fields(FitConfig)}
    left_out = ("codec", "device", *(["temperature"] if is_auto else []))
    words = []
    for name, value in config.items():
        if value is None or (name in defaults and value == defaults[name]) or name in left_out:
            continue
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"--no-{flag[2:]}" if value is False else f"{flag} {_flag_value(value)}")
    return " ".join(words)


def _flag_value(value: Any) -> str:
    return ",".join(map(_words, value)) if isinstance(value, list | tuple) else _words(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def _print_distortion(report: Mapping[str, Any]) -> None:
    """Figures of the fit on held-out and training labels, if the file records them."""
    from rich.table import Table

    parts = {
        "held out": report.get("held_out"),
        "training labels": report.get("train"),
        "held out, --gain 1": report.get("calibrated"),
    }
    rates = report.get("rates")
    parts |= {f"held out, --bits {bits}": figures for bits, figures in _mapping(rates).items()}
    rows = {title: figures for title, figures in parts.items() if isinstance(figures, dict)}
    if not rows:
        return
    names = sorted({name for figures in rows.values() for name in figures if name not in ("labels", "mse")}, key=_figure_order)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("KL in nats * T^2", no_wrap=True)
    for name in names:
        table.add_column(FIGURES.get(name, name.replace("_T", " T=").replace("kl", "KL").replace("_", " ")), justify="right")
    for title, figures in rows.items():
        table.add_row(title, *(_figure(figures.get(name)) for name in names))
    _print("", table)


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"


def _figure_order(name: str) -> tuple[bool, str, float]:
    """KL by rising temperature, then the others."""
    start, _, temperature = name.partition("_T")
    return ("kl" not in name, start, float(temperature) if temperature.replace(".", "").isdecimal() else 0.0)


def _rows_of_dump(found: Mapping[str, Any]) -> Rows:
    if "documents" in found:
        vocabulary = "unknown" if found["vocabulary"] is None else f"{found['vocabulary']:,} tokens"
        return [
            ("layout", found["layout"]),
            ("documents", f"{found['documents']:,}, {found['labels']:,} labels"),
            ("rows", f"{found['width']:,} numbers ({found['domain']}, {found['dtype'].lower()})"),
            ("vocabulary", vocabulary),
        ]
    labels = f"{found['labels']:,}" if found["batches"] == 1 else f"about {found['labels']:,}"
    rows = [
        ("layout", found["layout"]),
        ("labels", f"{labels} of {found['classes']:,} classes ({found['domain']}, {found['dtype'].lower()})"),
        ("epochs", f"{found['epochs']:,}, in {_count(found['batches'], 'batch', 'batches')}, the first of {found['batch_size']:,}"),
        ("size", f"{size(2 * found['classes'] * found['labels'])} as fp16 logits"),
        ("views", ", ".join(found["columns"]) or "not recorded"),
        (
            "temperature",
            "" if found["temperature"] is None else f"the layout's scripts train students at T = {found['temperature']:g}",
        ),
    ]
    return _merged(rows)


def _merged(rows: Iterable[tuple[str, str]]) -> Rows:
    """Rows without those that have no value."""
    return [(name, value) for name, value in rows if value]


def _settings(config: Mapping[str, Any]) -> str:
    """The configuration of a codec, except what other rows show."""
    words = [
        f"{STORED_NAMES.get(name, name).replace('_', ' ')} {_words(value)}"
        for name, value in config.items()
        if name not in SHOWN_ELSEWHERE and value is not False and (name, value) != ("head", 0)
    ]
    return ", ".join(words)


def _words(value: Any) -> str:
    """A value of JSON in words."""
    if value in (None, {}, []):
        return "none"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name.replace('_', ' ')} {_words(part)}" for name, part in value.items()) + ")"
    if isinstance(value, list | tuple):
        return " ".join(_words(part) for part in value[:8]) + " ..." * (len(value) > 8)
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:16]}..."
    if value is True:
        return "yes"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values) if isinstance(values, list | tuple) else str(values)


def _sha(digest: object) -> str:
    return f"sha256 of its labels {digest[:16]}..." if isinstance(digest, str) else ""


def _console() -> Any:
    import sys

    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH) if sys.stdout.isatty() else min(console.width, 80)
    return console


def _print_rows(rows: Rows) -> None:
    """Two columns; long values are wrapped within theirs."""
    from rich.table import Table
    from rich.text import Text

    from vqlabel.errors import printable

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(printable(value)))
    _print(grid)


def _print_sizes(found: Mapping[str, Any]) -> None:
    """Bytes by group, their share, and bits per label."""
    from rich.table import Table

    labels = max(1, found.get("records", found.get("labels", 0)))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("size", "bytes", "share", "bits per label"):
        table.add_column(title, justify="left" if title == "size" else "right")
    for name, count in [*found["bytes_by_group"].items(), ("total", found["bytes"])]:
        if count:
            table.add_row(name, f"{count:,}", f"{100 * count / found['bytes']:.1f} %", f"{8 * count / labels:,.2f}")
    _print("", table)
    ratio = found["ratio_to_fp16"]
    counted = ", augmentation and order not counted" if found["what"] == "images" else ""
    if ratio is not None:
        share = f"1/{ratio:.3g} of" if ratio >= 1 else f"{1 / ratio:.3g} times"
        _print("", f"{share} fp16 logits{counted}")


def _print(*parts: Any) -> None:
    """Print without blanks at the ends of lines, which Rich fills."""
    import typer

    console = _console()
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
