"""Fitting the VQAE: codes from PCA + residual k-means, a decoder trained with KL on them, codes chosen again by it, the decoder again.

Codes are held still while the decoder trains: straight-through training of all parts from random weights ends above faiss' error.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqlabel.codecs.base import FitHooks, LabelSample
from vqlabel.codecs.distortion import Distortion, as_logits, hellinger_features, mixed_kl
from vqlabel.codecs.precision import quick_matmul
from vqlabel.codecs.quantizer import fit_codebooks
from vqlabel.codecs.storage import round_trip
from vqlabel.config import FitConfig, VqaeConfig

if TYPE_CHECKING:
    from vqlabel.codecs.vqae import VqaeCodec

BATCH = 256
RATE = 1e-3  # peak learning rate
CHUNK = 2048
PCA_LABELS, KMEANS_LABELS = 16_384, 65_536
ROUNDS = 2  # decoder trainings, with the codes chosen again in between


def resolve(config: FitConfig, labels: int, classes: int, domain: str) -> VqaeConfig:
    """Every number that the user left open.

    k = 256, less where a code would see fewer than 32 labels; slots from the bits; a latent that the labels can pay for (one number of
    d_h per 64 of them, 16..256): a larger one learns a small dump by heart.
    """
    if config.codebook_size:
        k = config.codebook_size
    else:
        most = max(1, min(8, config.bits, int(math.log2(max(1, labels / 32)))))
        k = 1 << max(
            range(max(1, most - 2), most + 1), key=lambda width: (config.bits // width * width, width)
        )  # spends the most bits
    width = (k - 1).bit_length()
    latent = config.latent or max(2, min(256, 16 * max(1, labels // 1024), classes - 1))
    if config.code_width is None:
        slots = config.slots or max(1, config.bits // width)
        code_width, quantizer = latent, "residual"
    else:
        slots = config.slots or max(1, (config.latent or config.bits // width * config.code_width) // config.code_width)
        latent, code_width, quantizer = config.latent or slots * config.code_width, config.code_width, "grouped"
    return VqaeConfig(
        classes=classes, domain=domain, slots=slots, codebook_size=k, latent=latent, code_width=code_width, quantizer=quantizer,
        hidden=config.hidden or 2 * latent, temperature=config.temperature,
    )  # fmt: skip


def fit_vqae(codec: VqaeCodec, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> None:
    """Fit `codec` in place; the same seed on the same machine gives the same bytes, interrupted and resumed or not."""
    device = torch.device(config.device)
    codec.to(device)
    seen, held = sample.seen.to(device), sample.held.to(device)
    epochs = config.epochs if config.epochs is not None else max(4, min(20, 240_000 // max(1, len(seen))))
    state = hooks.resumed
    if state is None:
        generator = torch.Generator().manual_seed(config.seed)
        hooks.progress("codebooks", 0, 1, {})
        _fit_encoder(codec, seen, generator)
        codes, held_codes = codec.encode(seen), codec.encode(held)
        _start_decoder(codec, seen, codes)
        hooks.progress("codebooks", 1, 1, {})
        state = {
            "codec": codec.state_dict(),
            "codes": codes,
            "held_codes": held_codes,
            "round": 0,
            "training": None,
            "seed": config.seed,
        }
    else:
        codec.load_state_dict(state["codec"])
    for turn in range(state["round"], ROUNDS):
        codes, held_codes, training = state["codes"], state["held_codes"], state["training"]
        _train_decoder(codec, (seen, codes), (held, held_codes), epochs, turn, state, hooks, training)
        if turn + 1 < ROUNDS:
            hooks.progress("choosing codes again", 0, 1, {})
            codec.set_effort("best")
            codes, held_codes = codec.encode(seen), codec.encode(held)
            codec.set_effort("normal")
            hooks.progress("choosing codes again", 1, 1, {})
        state = {
            **state,
            "codec": codec.state_dict(),
            "codes": codes,
            "held_codes": held_codes,
            "round": turn + 1,
            "training": None,
        }
        hooks.save(state)
    with torch.no_grad():
        for weight in codec.decoder.parameters():
            weight.copy_(round_trip(weight))
    codec.cpu()


def _fit_encoder(codec: VqaeCodec, seen: Tensor, generator: torch.Generator) -> None:
    """PCA of the features on a bounded number of labels, then codebooks on all latents."""
    config, encoder = codec.config, codec.encoder
    assert encoder is not None
    some = seen[torch.randperm(len(seen), generator=generator)[:PCA_LABELS].to(seen.device)]
    features = torch.cat([
        torch.cat([hellinger_features(x, t) for t in config.temperature], 1) for x in as_logits(some, config.domain).split(CHUNK)
    ])  # fmt: skip
    mean = features.mean(0)
    features -= mean
    width = min(config.latent, *features.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 31, (1,), generator=generator)))
        basis = torch.svd_lowrank(features, q=min(width + 16, *features.shape), niter=3)[2][:, :width]
    encoder.basis[..., :width] = basis.view(len(config.temperature), config.classes, width)
    encoder.offset[:width] = mean @ basis
    latents = _latents(codec, seen[torch.randperm(len(seen), generator=generator)[:KMEANS_LABELS].to(seen.device)])
    if config.quantizer == "grouped":
        order = _balanced(latents.var(0, correction=0), config.slots, config.code_width)
        encoder.basis.copy_(encoder.basis[..., order])
        encoder.offset.copy_(encoder.offset[order])
        latents = latents[:, order]
    encoder.codebooks.copy_(fit_codebooks(latents, config.slots, config.codebook_size, config.quantizer, generator))


def _balanced(variance: Tensor, slots: int, width: int) -> Tensor:
    """Order of the latent's numbers in which every group has a like product of variances (OPQ's start, Ge et al. 2013)."""
    groups: list[list[int]] = [[] for _ in range(slots)]
    load = [0.0] * slots
    for at in variance.argsort(descending=True).tolist():
        slot = min((s for s in range(slots) if len(groups[s]) < width), key=lambda s: load[s])
        groups[slot].append(at)
        load[slot] += math.log(max(float(variance[at]), 1e-12)) - math.log(1e-12)
    return torch.tensor([at for group in groups for at in group], device=variance.device)


def _latents(codec: VqaeCodec, labels: Tensor) -> Tensor:
    assert codec.encoder is not None
    with torch.no_grad():
        return torch.cat([codec.encoder(as_logits(x, codec.config.domain)) for x in labels.split(CHUNK)])


@torch.no_grad()
def _start_decoder(codec: VqaeCodec, seen: Tensor, codes: Tensor) -> None:
    """The best linear decoder of these codes, by least squares on centred logits; the hidden layer starts at no effect."""
    decoder, encoder = codec.decoder, codec.encoder
    assert encoder is not None
    size = encoder.codebooks.square().sum((1, 2)).mean().sqrt() / math.sqrt(codec.config.codebook_size * codec.config.code_width)
    decoder.codebook.copy_(encoder.codebooks / size.clamp_min(1e-12))
    d, c = codec.config.latent, codec.config.classes
    square, cross = torch.zeros(d + 1, d + 1, device=seen.device), torch.zeros(d + 1, c, device=seen.device)
    for x, code in zip(seen.split(CHUNK), codes.split(CHUNK), strict=True):
        z = torch.cat([decoder.latent(code), torch.ones(len(code), 1, device=seen.device)], 1)
        square += z.T @ z
        cross += z.T @ as_logits(x, codec.config.domain)
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(d + 1, device=seen.device)
    best = torch.linalg.solve(square + ridge, cross)  # [d + 1, C]
    decoder.out.weight.copy_(best[:-1].T)
    decoder.out.bias.copy_(best[-1])
    decoder.outside.weight.mul_(0.05)
    decoder.outside.bias.zero_()


def _train_decoder(
    codec: VqaeCodec,
    seen: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    epochs: int,
    turn: int,
    state: dict[str, Any],
    hooks: FitHooks,
    resumed: dict[str, Any] | None,
) -> None:
    """AdamW on the mixed KL; ends with the weights of the epoch that was best on held-out labels, the start included."""
    decoder, (labels, codes), temperatures = codec.decoder, seen, codec.config.temperature
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE, weight_decay=0.01)
    steps = max(1, epochs * -(-len(labels) // BATCH))
    warm = 0.1 if steps != 10 else 0.2  # with a warm-up of just one step torch divides 0 by 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=warm)
    best, best_weights, first = _judge(codec, *held)["loss"], copy.deepcopy(decoder.state_dict()), 0
    if resumed is not None:
        decoder.load_state_dict(resumed["decoder"])
        optimizer.load_state_dict(resumed["optimizer"])
        schedule.load_state_dict(resumed["schedule"])
        best, best_weights, first = resumed["best"], resumed["best_weights"], resumed["epoch"]
    for epoch in range(first, epochs):
        shuffle = torch.Generator().manual_seed(state["seed"] * 1_000_003 + turn * 10_007 + epoch)
        total = torch.zeros((), device=labels.device)
        for at in torch.randperm(len(labels), generator=shuffle).to(labels.device).split(BATCH):
            with quick_matmul(labels.device):
                out = decoder(codes[at])
            loss = mixed_kl(as_logits(labels[at], codec.config.domain), out.float(), temperatures).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(at)
        figures = _judge(codec, *held)
        if figures["loss"] < best:
            best, best_weights = figures["loss"], copy.deepcopy(decoder.state_dict())
        hooks.save({**state, "training": {
            "decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
            "best": best, "best_weights": best_weights, "epoch": epoch + 1,
        }})  # fmt: skip
        hooks.progress(f"decoder, round {turn + 1}", epoch + 1, epochs, {"seen loss": total.item() / len(labels), **figures})
    decoder.load_state_dict(best_weights)


@torch.no_grad()
def _judge(codec: VqaeCodec, labels: Tensor, codes: Tensor) -> dict[str, float]:
    """Held-out loss, and KL at each temperature."""
    figures = Distortion(temperatures=codec.config.temperature, domain=codec.config.domain)
    loss = 0.0
    for x, code in zip(labels.split(CHUNK), codes.split(CHUNK), strict=True):
        out = codec.decode(code)
        figures.add(x, out)
        loss += (
            mixed_kl(as_logits(x, codec.config.domain), as_logits(out, codec.config.domain), codec.config.temperature).sum().item()
        )
    return {"loss": loss / len(labels), **figures.figures()}
