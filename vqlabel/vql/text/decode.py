"""The codec of a `.vql` of documents, with its head attached."""

from os import PathLike

import numpy as np
import torch

from vqlabel.codecs.documents import DocumentCodec
from vqlabel.codecs.file import build_from
from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.codecs.registry import TEXT_CODECS
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.dtypes import torch_type
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels.text.head import open_head
from vqlabel.labels.text.head_contract import Head
from vqlabel.vql.decode import TENSOR_TYPES
from vqlabel.vql.file import CODEC
from vqlabel.vql.text.file import TextVqlFile


def read_text_codec(file: TextVqlFile) -> DocumentCodec:
    """The decoder that a file contains; without its output map, if the file only names the head: see `attach_head`.

    Raises:
        BadContainer: its tensors do not fit its configuration.
    """
    container, kind, tensors = file.container, file.codec["kind"], {}
    if kind not in TEXT_CODECS:
        raise BadContainer(f"{container.path}: codec {kind} does not code the labels of documents; damaged or forged")
    for name, section in container.sections.items():
        if name.startswith(CODEC):
            if section.dtype not in TENSOR_TYPES:
                raise BadContainer(f"{container.path}: codec tensor {name!r} is {section.dtype}; it must be I8, U8, F16 or F32")
            tensors[name.removeprefix(CODEC)] = torch.from_numpy(container.tensor(name)).to(torch_type(section.dtype))
    try:
        codec = build_from(TEXT_CODECS[kind], file.codec["config"], tensors)
    except BadContainer as error:
        raise BadContainer(f"{container.path}: {error}") from None
    assert isinstance(codec, DocumentCodec)
    return codec


def attach_head(file: TextVqlFile, codec: DocumentCodec, head: str | PathLike[str] | None) -> None:
    """Attach the head that a file names; checks it by its hash. A file that contains its output map, or has top-k
    labels, needs none.

    Raises:
        UsageError: the head is missing or another one.
    """
    if not isinstance(codec, TokenVqae) or codec.config.head == "embedded":
        return
    named, path = file.text["head"], file.container.path
    if head is None:
        raise UsageError(
            f"{path}: names its output head and does not contain it: pass head=, the model {named.get('model')} (tensor {named.get('tensor')}, "
            f"sha256 {named.get('sha256')})"
        )
    stored = open_head(head, vocab=codec.config.classes)
    if stored.sha256 != named.get("sha256"):
        raise UsageError(
            f"{head}: its output head {stored.name} has sha256 {stored.sha256}; {path} was made with {named.get('model')}, tensor "
            f"{named.get('tensor')}, sha256 {named.get('sha256')}: pass that model"
        )
    codec.attach(as_output_head(stored))


def as_output_head(stored: Head) -> OutputHead:
    """A head in memory, as float32."""
    bias = None if stored.bias is None else torch.from_numpy(stored.bias)
    weight = torch.from_numpy(np.require(stored.rows(0, stored.vocabulary), requirements="W"))  # a copy of mapped rows
    return OutputHead(weight=weight, bias=bias, scale=stored.scale, soft_cap=stored.soft_cap)
