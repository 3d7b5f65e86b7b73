"""The command that labels images or documents with a teacher. It imports torch inside its body, so --help is fast."""

from pathlib import Path
from typing import Annotated

import typer

from vqlabel.cli import show, terminal, text
from vqlabel.cli.app import app
from vqlabel.cli.help import CODEC, INPUT, OUTPUT
from vqlabel.cli.help import TEXT as TEXT_PANEL
from vqlabel.cli.help import VIEWS as VIEWS_PANEL
from vqlabel.cli.options import (
    Device,
    Effort,
    Head,
    Ids,
    ImageDigest,
    Json,
    NoFuture,
    Overwrite,
    ReferenceHead,
    Restart,
    Threads,
    Tokenizer,
)
from vqlabel.cli.parse import read_numbers, read_range, read_size
from vqlabel.errors import UsageError
from vqlabel.threads import named_threads

OF_IMAGES = ("layout", "epochs", "view", "mix", "scale", "flip", "patches", "mean", "std", "dtype", "image_digest", "effort")
OF_FIT = ("latent", "ids", "no_future", "reference_head")
OF_TEXT = ("document_length", "tokenizer", "head", "bits", "ratio", "budget", *OF_FIT)
VIEWS = 128  # in a batch

Images = Annotated[Path | None, typer.Argument(metavar="IMAGES", help="folder of images; image i is the i-th of its sorted files")]
Corpus = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="CORPUS",
        help="label documents instead of images: a .npy of token ids [n, L] or [T]; a .jsonl or .parquet file with input_ids, token_ids, tokens or "
        "text; or a folder of such files",
        rich_help_panel=TEXT_PANEL,
    ),
]
DocumentLength = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="tokens of a document, for a flat .npy that has no .offsets.npy beside it",
        rich_help_panel=TEXT_PANEL,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "-o",
        "--out",
        metavar="FILE.vql",
        rich_help_panel=OUTPUT,
        help=".vql file to write, or a dump of images' labels if --layout is given",
    ),
]
Teacher = Annotated[
    str,
    typer.Option(
        metavar="TEACHER",
        rich_help_panel=INPUT,
        help="teacher: module:function, a TorchScript or torch.export file, timm:NAME, torchvision:NAME or transformers:NAME; with --text: the folder "
        "of a causal language model of transformers, or module:function of tokens [b, L] and mask [b, L]; its code is executed",
    ),
]
Codec = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=CODEC,
        help="codec file for a .vql (default: labels of images are stored losslessly; to those of documents a codec is fitted)",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="LAYOUT",
        rich_help_panel=OUTPUT,
        help="write a dump in this layout: sre2l (in the order of its script's shuffle), lpld, lpqld, lpqld:K, gvbsm or edc",
    ),
]
Epochs = Annotated[int, typer.Option(metavar="N", rich_help_panel=VIEWS_PANEL, help="number of epochs: views per image")]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=VIEWS_PANEL,
        help="batch size (default: 128 views, which are mixed within a batch; 8 documents, on which labels do not depend)",
    ),
]
View = Annotated[int, typer.Option(metavar="PIXELS", rich_help_panel=VIEWS_PANEL, help="side of a view in pixels")]
Mix = Annotated[str, typer.Option(metavar="HOW", rich_help_panel=VIEWS_PANEL, help="mixing of views: cutmix, mixup or none")]
Scale = Annotated[
    str,
    typer.Option(
        metavar="MIN,...",
        rich_help_panel=VIEWS_PANEL,
        help="range of the crop area, as fractions of the image area: --scale 0.5,1 or --scale 0.5 1",
    ),
]
Flip = Annotated[float, typer.Option(metavar="P", rich_help_panel=VIEWS_PANEL, help="probability of a horizontal flip")]
Patches = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=VIEWS_PANEL,
        help="cut each side of an image into this many strips and shuffle them before the crop, as RDED does",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B,...",
        rich_help_panel=INPUT,
        help="mean of pixels in 0..1 for normalization, such as 0.5 or 0.485,0.456,0.406 (default: the teacher's if it is known, as of timm: and transformers:; otherwise ImageNet's)",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B,...",
        rich_help_panel=INPUT,
        help="standard deviation of pixels in 0..1, in the form of --mean (default: as there)",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        rich_help_panel=VIEWS_PANEL,
        help="seed of the views, which the file stores instead of the augmentation of each view; with --text: of the fit",
    ),
]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", rich_help_panel=OUTPUT, help="dtype of the labels: f16 or f32")]
Bits = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="code bits per label on average (default: 32, or determined by --ratio or --bytes)",
        rich_help_panel=TEXT_PANEL,
    ),
]
Ratio = Annotated[
    float | None, typer.Option(metavar="N", help="target compression ratio against fp16 logits", rich_help_panel=TEXT_PANEL)
]
Budget = Annotated[
    str | None,
    typer.Option("--bytes", metavar="SIZE", help="target file size, such as 500kB, 5M or 5MiB", rich_help_panel=TEXT_PANEL),
]
Latent = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="directions of the hidden states that labels keep (default: as few as lose 0.01 nats)",
        rich_help_panel=TEXT_PANEL,
    ),
]


@app.command()
@terminal.exit_with_errors
def relabel(
    context: typer.Context,
    out: Out,
    teacher: Teacher,
    images: Images = None,
    corpus: Corpus = None,
    codec: Codec = None,
    layout: Layout = None,
    epochs: Epochs = 300,
    batch: Batch = None,
    view: View = 224,
    mix: Mix = "cutmix",
    scale: Scale = "0.08,1",
    flip: Flip = 0.5,
    patches: Patches = 1,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    dtype: Dtype = "f16",
    image_digest: ImageDigest = None,
    effort: Effort = "normal",
    document_length: DocumentLength = None,
    tokenizer: Tokenizer = None,
    head: Head = None,
    bits: Bits = None,
    ratio: Ratio = None,
    budget: Budget = None,
    latent: Latent = None,
    ids: Ids = None,
    no_future: NoFuture = False,
    reference_head: ReferenceHead = False,
    device: Device = "cpu",
    threads: Threads = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    json: Json = False,
) -> None:
    """Label views of images, or documents, with a teacher. After an interruption, the same command resumes."""
    if (images is None) == (corpus is None):
        raise UsageError("relabel needs a folder of images, or a corpus of documents with --text; pass one of the two")
    if corpus is not None:
        from vqlabel.config import TextFitConfig

        _refuse(context, OF_IMAGES, "is for labels of images; remove it, or --text")
        if codec is not None:
            _refuse(context, OF_FIT, f"is an option of a fit, and {codec} is fitted; remove it, or --codec")
        given = {"bits": bits, "ratio": ratio, "bytes": None if budget is None else read_size(budget), "latent": latent, "ids": ids}
        config = TextFitConfig(
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
            future=not no_future, embed_head=not reference_head, seed=seed, device=device,
        )  # fmt: skip
        with named_threads(threads), terminal.progress_bar() as progress:
            result = text.relabel(
                corpus, out, teacher, config, codec=codec, head=head, tokenizer=tokenizer, document_length=document_length, batch=batch,
                overwrite=overwrite, restart=restart, progress=progress,
            )  # fmt: skip
        terminal.notes(result)
        terminal.emit(result, json, text.show_packed)
        return
    from vqlabel.codecs import load_codec
    from vqlabel.storage.apart import check_apart
    from vqlabel.views.image_folder import ImageFolder
    from vqlabel.views.recipe import Recipe
    from vqlabel.workflows.quality import fit_quality
    from vqlabel.workflows.relabel import check_relabel_target
    from vqlabel.workflows.relabel import relabel as run
    from vqlabel.workflows.teacher_source import TeacherSource
    from vqlabel.workflows.teachers import load_teacher

    assert images is not None
    _refuse(context, OF_TEXT, "is for labels of documents; remove it, or pass --text CORPUS")
    check_relabel_target(out, layout, overwrite=overwrite)
    check_apart(out, images, beside=(codec, teacher))
    folder = ImageFolder(images)
    recipe = Recipe(
        seed=seed, images=len(folder), epochs=epochs, batch=VIEWS if batch is None else batch, view=view, scale=read_range("--scale", scale), flip=flip, mix=mix, patches=patches,
    )  # fmt: skip
    model = load_teacher(teacher, mean=read_numbers("--mean", mean), deviation=read_numbers("--std", std), device=device)
    with named_threads(threads), terminal.progress_bar() as progress:
        source = TeacherSource(folder, model, recipe, dtype=dtype.upper(), device=device, image_digest=image_digest or "names")
        loaded, report = (None, {}) if codec is None else load_codec(codec)
        result = run(
            source, out, codec=loaded, layout=layout, effort=effort, device=device, overwrite=overwrite, restart=restart,
            progress=progress,
        )  # fmt: skip
    if loaded is not None:
        result["fit"] = fit_quality(report, sum(loaded.code_bits), codec)
    terminal.notes(result)
    terminal.emit(result, json, show.show_relabelled)


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Raises UsageError if an option of these names was given on the command line."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{parameter.opts[-1]}: {why}")
