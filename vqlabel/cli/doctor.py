"""The command that shows what is installed and what the machine offers, for reports of faults."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any, NamedTuple

import typer

from vqlabel.cli import terminal
from vqlabel.cli.app import app
from vqlabel.cli.options import Json
from vqlabel.threads import available_processors
from vqlabel.version import __version__

REQUIRED = ("torch", "numpy", "safetensors", "zstandard", "typer", "rich")


class Extra(NamedTuple):
    """An optional package: its name to import, the extra of vqlabel that installs it, and what needs it."""

    module: str
    extra: str
    purpose: str
    distribution: str | None = None  # its name on PyPI, if another than the module's


EXTRAS = (
    Extra("PIL", "student", "images: relabel, training views, --student", "pillow"),
    Extra("torchvision", "teachers", "teachers torchvision:NAME"),
    Extra("timm", "teachers", "teachers timm:NAME"),
    Extra("transformers", "teachers", "teachers transformers:NAME, relabel --text"),
    Extra("tokenizers", "text", "--tokenizer"),
    Extra("yaml", "text", "DistillKit's compression settings", "pyyaml"),
    Extra("pyarrow", "parquet", "dumps in Parquet and Arrow files"),
    Extra("h5py", "hdf5", "dumps in HDF5 files"),
    Extra("matplotlib", "plot", "--plot, --plot-calibration, demo"),
    Extra("faiss", "baselines", "compare --methods opq and others", "faiss-cpu"),
)


@app.command()
@terminal.exit_with_errors
def doctor(json: Json = False) -> None:
    """Show versions, devices, threads, and which extras are missing for what."""
    terminal.emit(examine(), json, show)


def examine() -> dict[str, Any]:
    """Versions, devices, threads and extras, as a JSON object. Loads torch."""
    return {
        "vqlabel": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in REQUIRED},
        "processors": {"available": available_processors(), "machine": os.cpu_count()},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        "devices": _devices(),
        "extras": [
            {
                "package": extra.distribution or extra.module,
                "version": _version(extra.distribution or extra.module) if _is_installed(extra.module) else None,
                "purpose": extra.purpose,
                "extra": extra.extra,
            }
            for extra in EXTRAS
        ],
    }


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(distribution: str) -> str | None:
    """The version of an installed package; "unknown" if it does not record one; None: it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown" if _is_installed(distribution) else None


def _devices() -> list[dict[str, Any]]:
    """The devices that --device accepts here, with their names and memory."""
    import torch

    devices: list[dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine(), "bytes": None}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"device": f"cuda:{index}", "name": properties.name, "bytes": properties.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU", "bytes": None})
    return devices


def show(found: dict[str, Any]) -> None:
    """The text output: versions and devices, then a table of extras and the command that installs missing ones."""
    packages = [f"{name} {version or 'MISSING'}" for name, version in found["packages"].items()]
    typer.echo(f"vqlabel {found['vqlabel']}, Python {found['python']}\n{found['platform']}")
    typer.echo(", ".join(packages[:3]) + "\n" + ", ".join(packages[3:]))
    processors = found["processors"]
    typer.echo(f"{processors['available']} of {processors['machine']} processors available; fits use 1 thread, --threads N more")
    for name, value in found["threads"].items():
        typer.echo(f"  {name}={value}")
    for device in found["devices"]:
        memory = "" if device["bytes"] is None else f", {terminal.size(device['bytes'])}"
        typer.echo(f"--device {device['device']}: {device['name']}{memory}")
    typer.echo("")
    width = max(len(extra["package"]) for extra in found["extras"])
    for extra in found["extras"]:
        typer.echo(f"{extra['package']:{width}}  {extra['version'] or 'missing':9}  {extra['purpose']}")
    missing = sorted({extra["extra"] for extra in found["extras"] if extra["version"] is None})
    if missing:
        typer.echo(f"\nto install what is missing: pip install 'vqlabel[{','.join(missing)}]'")
