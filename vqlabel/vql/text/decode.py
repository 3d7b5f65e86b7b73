"""The codec of a `.vql` of documents, with its head attached."""

from os import PathLike

import torch

from vqlabel.codecs.file import build_codec
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.dtypes import torch_type
from vqlabel.errors import BadContainer
from vqlabel.vql.decode import TENSOR_TYPES
from vqlabel.vql.file import CODEC
from vqlabel.vql.text.file import TextVqlFile


def read_text_codec(file: TextVqlFile, head: str | PathLike[str] | None = None) -> TokenVqae:
    """The decoder that a file contains.

    Args:
        head: path of the output head, if the file only names it.

    Raises:
        BadContainer: its tensors do not fit its configuration.
        UsageError: the head is missing or another one.
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
