"""Configuration of a VQAE -> bytes of its tensors, and of a `.vql` of so many labels."""

import math

from vqlabel.codecs.config import CHUNK_CODES
from vqlabel.codecs.vqae.config import VqaeConfig
from vqlabel.codecs.vqae.prior import WIDTHS
from vqlabel.codecs.weights import stored_bytes
from vqlabel.container import overhead

NETWORK = ("prior.mixed", "prior.inside", "prior.outside")  # few weights, used by all labels: stored in 2 more bits


def bits_of(name: str, weight_bits: int) -> int:
    """Bits of a stored number of the decoder weight `name`."""
    return min(8, weight_bits + 2) if name.removeprefix("decoder.").startswith(NETWORK) else weight_bits


def codec_bytes(config: VqaeConfig) -> int:
    """Bytes of the decoder's tensors in a `.vql`."""
    d, w = config.latent, config.weight_bits
    shapes: dict[str, tuple[int, ...]] = {
        "out": (d, config.classes),
        "bias": (config.classes,),
        "center": (d,),
        "contrast": (config.slots + 1,),
    }
    if config.lift:
        shapes["lift"] = (d, d)
    if config.slots:
        shapes["codebook"] = (config.slots, config.codebook_size, config.code_width)
    if config.prior is not None:
        e, h = config.prior.image_width, config.prior.hidden
        inputs = e * (3 if "mix" in config.prior.fields else 1) + sum(WIDTHS[name] for name in config.prior.fields)
        shapes |= {"prior.images": (config.prior.images, e), "prior.mixed": (d, e), "prior.inside": (h, inputs)}
        shapes |= {"prior.inside.bias": (h,), "prior.outside": (d, h), "prior.outside.bias": (d,)}
    return sum(stored_bytes(shape, bits_of(name, w)) for name, shape in shapes.items())


def file_bytes(config: VqaeConfig, labels: int) -> int:
    """Bytes of a `.vql` of `labels` labels with this codec, without augmentation and order."""
    codes, chunks = math.ceil(labels * config.label_bits / 8), -(-labels // overhead.CHUNK_ROWS)
    if not config.label_bits:
        chunks = -(-labels // CHUNK_CODES)
        codes = overhead.STREAM_PADDING * chunks  # zeros, which compress to nothing
    elif config.variable:
        codes, chunks = (
            codes + overhead.STREAM_PADDING + overhead.ZSTD_CHUNK_EXCESS * chunks,
            chunks + math.ceil(labels * config.rate / config.code_bits / CHUNK_CODES),
        )
    header = overhead.FILE_BYTES + overhead.HEADER_GROWTH * (config.prior is not None and (config.lift or config.variable))
    return codes + codec_bytes(config) + header + overhead.CHUNK_TABLE_ROW * chunks
