"""Time and memory of a student's loss on decoded labels of tokens, against the same loss on dense logits in memory.

    python tests/benchmarks/text_loss.py [--repeats 5] [--threads 1] [--json]

Labels are random, of the size of a real codec: prior, 4 codes, 2 exact ids each, a latent of 256. Both losses are the
KL of 2,048 labels and its gradient in hidden states and head (V = 16,384, d = 256), run in turns in one process; ratios
are medians over the turns. "Decoded" computes latents from codes and logits from latents, "with the prior" also the
prior's latents from tokens. The peak memory is that of a process that only takes one step of 512 tokens at V = 262,144.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from vqlabel.codecs.token_vqae.config import TokenPriorConfig, TokenVqaeConfig
from vqlabel.codecs.token_vqae.decoder import TokenDecoder
from vqlabel.codecs.token_vqae.exact_ids import ZERO_LEVEL, add_exact
from vqlabel.training.text.labels import DenseLogits, LogitRows, TokenLabels
from vqlabel.training.text.losses import kd_loss

MAX_RATIO, MAX_GIGABYTES = 1.6, 2.0
SLOTS, IDS, DOCUMENT = 4, 2, 128  # codes and exact ids of a label; tokens of a document
PRIOR = TokenPriorConfig(width=192, layers=2, heads=4, window=64, future=True)


@dataclass(frozen=True)
class Size:
    """Of the labels and the student."""

    labels: int = 2048
    vocabulary: int = 16_384
    width: int = 256  # d of the student, and latent of the codec


LARGE, TOY = Size(512, 262_144), Size(32, 300, 16)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Labels of a token_vqae: latents, output map and exact ids."""

    decoder: TokenDecoder
    latent: Tensor  # [n, d_h]
    ids: Tensor  # [n, IDS]

    def logits(self, rows: slice | Tensor, /) -> Tensor:
        ids = self.ids[rows]
        counts = torch.full((len(ids),), IDS)
        return add_exact(self.decoder.logits(self.latent[rows]), ids, torch.full_like(ids, ZERO_LEVEL + 2), counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", action="store_true", help="take one step at V = 262,144 and print the peak memory in GB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.step:
        print(peak_of_a_step(LARGE))
        return
    results = {**ratios(Size(), options.repeats), **memory(options.threads)}
    if options.json:
        print(json.dumps(results))
    else:
        for name, value in results.items():
            print(f"{name:64} {value:>8.2f}")


def new_decoder(size: Size) -> TokenDecoder:
    """A decoder with random weights."""
    torch.manual_seed(0)
    config = TokenVqaeConfig(
        classes=size.vocabulary,
        domain="hidden",
        hidden=size.width,
        latent=size.width,
        slots=SLOTS,
        codebook_size=256,
        ids=IDS,
        weight_bits=8,
        prior=PRIOR,
    )
    decoder = TokenDecoder(config).requires_grad_(False)
    decoder.out.normal_(std=size.width**-0.5)
    decoder.codebook.normal_()
    return decoder


class Latents:
    """Tokens and codes -> latents, as a reader of a file computes them."""

    def __init__(self, decoder: TokenDecoder, size: Size) -> None:
        n = size.labels
        self.decoder, self.tokens = decoder, torch.randint(0, size.vocabulary, (n + 1,))
        self.document, self.counts = torch.arange(n + 1) // DOCUMENT, torch.full((n,), SLOTS)
        self.codes = torch.randint(0, 256, (n, SLOTS))

    def of_codes(self) -> Tensor:
        """[n, d_h] without the prior."""
        return self.decoder.code_latent(self.codes, self.counts)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """[n, d_h]."""
        assert self.decoder.prior is not None
        latent: Tensor = self.decoder.prior(self.tokens, self.document, self.decoder.out)
        return latent + self.of_codes()


def step_of(size: Size) -> Callable[[LogitRows], None]:
    """A function that computes the loss on labels and its gradients."""
    hidden = torch.randn(size.labels, size.width, requires_grad=True)
    head = (torch.randn(size.vocabulary, size.width) * size.width**-0.5).requires_grad_(True)
    index = torch.arange(size.labels)

    def step(source: LogitRows) -> None:
        labels = TokenLabels(position=index, next_tokens=index % size.vocabulary, classes=size.vocabulary, source=source)
        hidden.grad = head.grad = None
        kd_loss(hidden, head, labels).backward()

    return step


def ratios(size: Size, repeats: int) -> dict[str, float]:
    """Times of all kinds of labels, in turns; the first turn is not counted."""
    decoder = new_decoder(size)
    latents, ids = Latents(decoder, size), torch.randint(0, size.vocabulary, (size.labels, IDS))
    decoded = Decoded(decoder, latents(), ids)
    dense, step = DenseLogits(decoded.logits(slice(None)).half()), step_of(size)
    kinds: dict[str, Callable[[], LogitRows]] = {
        "dense": lambda: dense,
        "decoded": lambda: Decoded(decoder, latents.of_codes(), ids),
        "with the prior": lambda: Decoded(decoder, latents(), ids),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(repeats + 1):
        for name in sorted(kinds, reverse=turn % 2 == 1):
            began = time.perf_counter()
            step(kinds[name]())
            seconds[name].append(time.perf_counter() - began)
    relative = {
        name: median(mine / theirs for mine, theirs in zip(seconds[name][1:], seconds["dense"][1:], strict=True)) for name in kinds
    }
    return {
        "KL and gradient of dense fp16 logits, ms": 1e3 * median(seconds["dense"][1:]),
        f"decoded, times dense (at most {MAX_RATIO})": relative["decoded"],
        f"decoded with the prior, times dense (at most {MAX_RATIO})": relative["with the prior"],
    }


def peak_of_a_step(size: Size) -> float:
    """GB of this process after one step."""
    import resource

    decoder = new_decoder(size)
    ids = torch.randint(0, size.vocabulary, (size.labels, IDS))
    step_of(size)(Decoded(decoder, Latents(decoder, size)(), ids))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9)


def memory(threads: int) -> dict[str, float]:
    """Peak memory of a step at V = 262,144 in its own process."""
    command = [sys.executable, __file__, "--step", "--threads", str(threads)]
    gigabytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    dense = 4e-9 * LARGE.labels * LARGE.vocabulary
    return {
        f"step at V = {LARGE.vocabulary:,}, peak GB (at most {MAX_GIGABYTES})": gigabytes,
        "all logits of that step once in float32, GB": dense,
    }


if __name__ == "__main__":
    main()
