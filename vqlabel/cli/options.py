"""Arguments and options that several commands have, each declared once; fit_options.py has those of a fit."""

from pathlib import Path
from typing import Annotated

import typer

from vqlabel.cli.help import CODEC, GENERAL, INPUT, OUTPUT, RATE, STUDENTS, TRAINING
from vqlabel.cli.help import TEXT as TEXT_PANEL
from vqlabel.codecs.registry import CODECS as REGISTRY

LAYOUTS = "arrays, sre2l, lpld, lpqld, gvbsm, edc, hald, fkd, tinyvit or tensor"  # a copy of labels.LAYOUTS: --help loads no NumPy
CODECS = f"{', '.join([*REGISTRY][:-1])} or {[*REGISTRY][-1]}"

Dump = Annotated[
    Path,
    typer.Argument(
        metavar="DUMP",
        help="dump of labels: a .npy, .npz, .safetensors, .pt, .parquet or .h5 file, a folder of such files, or a dump in another "
        f"layout ({LAYOUTS})",
    ),
]
Vql = Annotated[Path, typer.Argument(metavar="FILE.vql", help=".vql file")]
OutCodec = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", rich_help_panel=OUTPUT, help="codec file to write")]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        rich_help_panel=OUTPUT,
        help="discard the state of an interrupted run; otherwise the same command continues it",
    ),
]
Overwrite = Annotated[bool, typer.Option("-f", "--overwrite", rich_help_panel=OUTPUT, help="replace existing output files")]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="print the result as one JSON object")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        rich_help_panel=GENERAL,
        help="number of CPU threads (default: 1 for fits, whose operations are small; otherwise all available processors)",
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", rich_help_panel=GENERAL, help="PyTorch device: cpu, cuda, cuda:1, mps")]
Layout = Annotated[
    str | None, typer.Option(metavar="LAYOUT", rich_help_panel=INPUT, help=f"layout of the dump: {LAYOUTS} (default: detected)")
]
Classes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=INPUT,
        help="number of classes, for top-k dumps that do not record it (default: largest class index + 1)",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        rich_help_panel=INPUT,
        help="folder of the labelled images; for SRe2L dumps, which do not record the image of each label, it is inferred and the evidence "
        "is reported",
    ),
]
ClassMap = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=INPUT,
        help='JSON file such as {"n01440764": 0}: folder of --images -> class of the teacher (default: class i is the i-th folder)',
    ),
]
ImageDigest = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        rich_help_panel=INPUT,
        help="digest by which training recognizes the images: names, or bytes for names and contents (default: names)",
    ),
]
Array = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=INPUT,
        help="array, column, dataset or archive member of the labels, if a file has several; also as DUMP:NAME",
    ),
]
Axes = Annotated[
    str | None,
    typer.Option(
        metavar="AXES",
        rich_help_panel=INPUT,
        help="axes of an array: images,classes; epochs,images,classes; or images,views,classes (default: one of the first two, by the "
        "number of axes)",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        rich_help_panel=OUTPUT,
        help=f"layout to write: {LAYOUTS}; some have variants, such as lpqld:10, fkd:ms-k5, tinyvit:10 (default: by the output's suffix, "
        "otherwise the layout of the labels' dump)",
    ),
]
Kl = Annotated[
    float | None,
    typer.Option(
        metavar="NATS",
        rich_help_panel=RATE,
        help="target held-out KL in nats (times T^2), reached with the fewest bytes; instead of a size budget",
    ),
]
Domain = Annotated[
    str | None,
    typer.Option(
        metavar="DOMAIN",
        rich_help_panel=INPUT,
        help="logits, probs, or sigmoid (logits of a multi-label teacher) (default: the domain that the dump records, otherwise logits)",
    ),
]
Temperature = Annotated[
    str | None,
    typer.Option(
        metavar="T,...",
        rich_help_panel=TRAINING,
        help="temperatures at which the KL of labels is minimised, such as 1,4,20; a schedule, such as 20:2; mse for squared error of "
        "logits; or auto: 1, whatever the temperature of the student's loss (default: auto)",
    ),
]
StudentImages = Annotated[
    Path | None,
    typer.Option(
        "--student",
        metavar="FOLDER",
        rich_help_panel=STUDENTS,
        help="folder of the labelled images: trains students, minutes each; needs --val. Of documents: text, which is in the dump",
    ),
]
Val = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", rich_help_panel=STUDENTS, help="folder of new images to test students on, with one subfolder per class"
    ),
]
ValLabels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=STUDENTS,
        help=".npy file: the teacher's logits for --val, sorted by path; adds the KL of students to the teacher",
    ),
]
ValClassMap = Annotated[
    Path | None,
    typer.Option(
        "--class-map",
        metavar="FILE",
        rich_help_panel=STUDENTS,
        help="JSON file: folder of --val and --images -> class of the teacher (default: class i is the i-th folder)",
    ),
]
DEFAULT_VIEW = 224
View = Annotated[int, typer.Option(metavar="PIXELS", rich_help_panel=STUDENTS, help="side of the labelled views in pixels")]
Passes = Annotated[int, typer.Option(metavar="N", rich_help_panel=STUDENTS, help="training passes of each student over all views")]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=TRAINING,
        help="random seed; results are reproducible on the same machine with the same number of threads",
    ),
]
Effort = Annotated[
    str, typer.Option(metavar="LEVEL", rich_help_panel=CODEC, help="effort of the search for codes: fast, normal or best")
]

Head = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="the teacher's output head, for hidden states: a model folder of Hugging Face, a .safetensors file, or FILE:TENSOR; logits and "
        "top-k labels need none",
        rich_help_panel=TEXT_PANEL,
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="the teacher's tokenizer.json or its folder: its hash is recorded, and relabel tokenizes texts with it",
        rich_help_panel=TEXT_PANEL,
    ),
]
Layer = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="layer of hidden states to read, if a dump has several (default: the last)", rich_help_panel=TEXT_PANEL
    ),
]
Vocab = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="V, tokens of the teacher's vocabulary: for top-k labels, if the dump does not record it",
        rich_help_panel=TEXT_PANEL,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="of top-k labels, the tokens of a label to read, likeliest first (default: all)",
        rich_help_panel=TEXT_PANEL,
    ),
]
Rest = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="of top-k labels, what the other tokens have: uniform, equal shares of the remaining probability, or zero (default: uniform)",
        rich_help_panel=TEXT_PANEL,
    ),
]
Compression = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML or JSON of DistillKit's compression (default: compression_config.yaml beside the dump)",
        rich_help_panel=TEXT_PANEL,
    ),
]
Ids = Annotated[
    int | None, typer.Option(metavar="N", help="maximum number of exact ids per label (default: 8)", rich_help_panel=TEXT_PANEL)
]
NoFuture = Annotated[
    bool,
    typer.Option(
        "--no-future", help="predict labels from earlier tokens only: for students of other continuations of the same text",
        rich_help_panel=TEXT_PANEL,
    ),
]  # fmt: skip
ReferenceHead = Annotated[
    bool,
    typer.Option(
        "--reference-head", help="name the head by its hash instead of storing it: smaller, and readers need the model's file",
        rich_help_panel=TEXT_PANEL,
    ),
]  # fmt: skip
