"""Arguments and options that several commands share, except those of a fit (options.py)."""

from pathlib import Path
from typing import Annotated

import typer

from vqlabel.cli.options import LAYOUTS
from vqlabel.codecs.registry import CODECS as REGISTRY

CODECS = f"{', '.join([*REGISTRY][:-1])} or {[*REGISTRY][-1]}"

Dump = Annotated[
    Path,
    typer.Argument(
        help=f"a dump of labels: .npy, .npz, .safetensors, .pt, .parquet, .h5, a folder of them, or of another layout: {LAYOUTS}"
    ),
]
Vql = Annotated[Path, typer.Argument(help="a .vql file")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the target if it is there")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, help="by default one for fits, whose operations are small, and else all processors that this process may use"
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")]
Layout = Annotated[str | None, typer.Option(help=f"of the dump: {LAYOUTS}; detected by default")]
Classes = Annotated[
    int | None, typer.Option(help="C, where a dump of the k largest numbers does not say it; by default its largest class, and one")
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="the dump's images: finds out which of them each label is of where SRe2L's tree does not say it, and how sure that is"
    ),
]
ClassMap = Annotated[Path | None, typer.Option(help="JSON: folder of --images -> class of the teacher; by default the i-th is i")]
ImageDigest = Annotated[
    str | None,
    typer.Option(
        help="by what training tells the images from others: a digest of their names (the default), or of names and bytes"
    ),
]
Array = Annotated[
    str | None, typer.Option(help="array, column, dataset or member of labels where a file of the dump holds several; or DUMP:NAME")
]
Axes = Annotated[
    str | None,
    typer.Option(
        help="of an array: images,classes, epochs,images,classes (where it has three, the default) or images,views,classes"
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--layout", help=f"{LAYOUTS}; with a form where there are several: lpqld:10, fkd:ms-k5, tinyvit:10"),
]
Kl = Annotated[
    float | None, typer.Option(help="instead of a budget: held-out KL in nats (times T^2) to reach with the fewest bytes")
]
Domain = Annotated[
    str | None,
    typer.Option(
        help="logits, probs, or sigmoid: logits of a teacher of several labels an image; by default as the file declares it, else logits"
    ),
]
