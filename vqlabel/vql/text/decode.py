"""The codec of a `.vql` of documents, with its head attached."""

from os import PathLike

import torch

from vqlabel.codecs.file import build_codec
from vqlabel.codecs.hidden_labels import OutputHead
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.dtypes import torch_type
from vqlabel.errors import BadContainer, UsageError
from vqlabel.labels.text.head import StoredHead, open_head
from vqlabel.vql.decode import TENSOR_TYPES
from vqlabel.vql.file import CODEC
from vqlabel.vql.text.file import TextVqlFile


def read_text_codec(file: TextVqlFile) -> TokenVqae:
    """The decoder that a file contains; without its output map, if the file only names the head: see `attach_head`.

    Raises:
        BadContainer: its tensors do not fit its configuration.
    """
    container, tensors = file.container, {}
    for name, section in container.sections.items():
        if name.startswith(CODEC):
            if section.dtype not in TENSOR_TYPES:
                raise BadContainer(f"{container.path}: codec tensor {name!r} is {section.dtype}; it must be I8, U8, F16 or F32")
            tensors[name.removeprefix(CODEC)] = torch.from_numpy(container.tensor(name)).to(torch_type(section.dtype))
    try:
        codec = build_codec(file.codec["kind"], file.codec["config"], tensors)
    except BadContainer as error:
        raise BadContainer(f"{container.path}: {error}") from None
    if not isinstance(codec, TokenVqae):
        raise BadContainer(f"{container.path}: codec {codec.kind} does not code the labels of documents; damaged or forged")
    return codec


def attach_head(file: TextVqlFile, codec: TokenVqae, head: str | PathLike[str] | None) -> None:
    """Attach the head that a file names; checks it by its hash. A file that contains its output map needs none.

    Raises:
        UsageError: the head is missing or another one.
    """
    if codec.config.head == "embedded":
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


def as_output_head(stored: StoredHead) -> OutputHead:
    """A head in memory, as float32."""
    bias = None if stored.bias is None else torch.from_numpy(stored.bias)
    weight = torch.from_numpy(stored.rows(0, stored.vocabulary))
    return OutputHead(weight=weight, bias=bias, scale=stored.scale, soft_cap=stored.soft_cap)
