"""`.vql` -> checked through: every byte, every code, and that its decoder can be built. No label is decoded."""

from os import PathLike

import numpy as np

from vqlabel.container import verify as verify_bytes
from vqlabel.typed import typed_arguments
from vqlabel.unpacking import blaming, read_codec
from vqlabel.vql import VqlFile

CODES_RECORDS, CODES_BYTES = 4096, 32 << 20  # read at a time; a code takes 4 bytes at most


@typed_arguments
def verify(path: str | PathLike[str]) -> dict[str, int]:
    """Read and check every byte of a `.vql` file, every code against its codebook, every context against the prior, and that the
    decoder can be built.

    `container.verify` stops at the bytes: only the codec's configuration says which codes there are.

    Returns:
        bytes, tensors, streams and chunks that were checked.

    Raises:
        UsageError: no such file.
        BadContainer: anything in it is damaged, forged or from a newer version.
    """
    found = verify_bytes(path)
    file = VqlFile(path)
    codec = read_codec(file)
    step = max(1, min(CODES_RECORDS, CODES_BYTES // (4 * max(1, len(file.code_bits)))))
    for at in range(0, max(1, file.records), step):
        stop = min(at + step, file.records)
        file.codes(at, stop)
        if codec.uses_context:
            with blaming(file):
                codec.check_context(file.columns.context(np.arange(at, stop)))
    return found
