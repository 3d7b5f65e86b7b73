"""Fitting the VQAE: the prior; codes from PCA + residual k-means of what it did not know; decoder and prior trained with KL on them;
codes chosen again by the decoder's own loss, the decoder again.

Codes are held still while the decoder trains: straight-through training of all parts from random weights ends above faiss' error.
"""

import copy
import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vqlabel.codecs.sample import FitHooks, LabelSample
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.exact_top import join, split
from vqlabel.codecs.vqae.fit.dataset_stats import dataset_stats
from vqlabel.codecs.vqae.fit.debias import set_gain
from vqlabel.codecs.vqae.fit.initialize import initialize_codebooks, initialize_map
from vqlabel.codecs.vqae.fit.rate_control import PRICED, PRICED_LAST, set_rate_multiplier
from vqlabel.codecs.vqae.fit.resolve import resolve
from vqlabel.codecs.vqae.fit.rules import FREE_BITS
from vqlabel.codecs.vqae.fit.split import Split, make_split
from vqlabel.config import FitConfig
from vqlabel.errors import BadLabels, UsageError
from vqlabel.metrics.distortion import as_logits, temperature_weight
from vqlabel.metrics.likelihood import likelihood_of

BATCH, MIN_BATCH, BATCHES = 512, 32, 60  # labels a step, fewer where a pass would take fewer steps than that
RATE = 2e-3  # peak learning rate; twice that for image vectors, which see a gradient only when their image comes
RATE_UP_TO = 256  # labels a step; of more, it grows with their root: as many labels teach as much in fewer steps
JUDGED = 4096  # held-out labels that every epoch is judged by
LEVEL = 0.1  # weight of the error of a label's mean over classes, in that of its logits
ROUNDS = 2  # decoder trainings, with the codes chosen again in between
CHEAPER = 0.25  # share of the training steps that go to the rates below the codec's own, which get more of theirs later
CHEAPER_EPOCHS = 0.5  # of the passes that a training takes, for each of them: they begin from decoders that know them
EARNS = 0.03  # share of the held-out loss, without a code, that a prior must take away to be kept


class NothingKnown(UsageError):
    """A prior that was to be all of a label does not earn its bytes."""


def default_epochs(sample: LabelSample) -> int:
    """Passes over the labels that a fit sees, in each of its trainings, where nobody names them."""
    return max(8, min(20, 300_000 // max(1, len(sample.seen))))


def fit(sample: LabelSample, config: FitConfig, hooks: FitHooks) -> VqaeCodec:
    """Fit a VQAE to `sample.seen`, stopping by `sample.held`. Where a budget leaves room for a prior alone, and the prior does not predict
    the labels, the sizes are chosen again without a prior.

    Raises:
        UsageError: only some logits of a label are known; the sizes contradict each other or the budget.
        BadLabels: a label that fp16 cannot hold.
    """
    _check_labels(sample)
    codec, without, resumed = _initial(sample, config), dataclasses.replace(config, prior=False), hooks.resumed
    prior_alone = not codec.config.slots and config.slots is None and config.bits is None  # by the rule for budgets
    if not (prior_alone and resumed is not None and not resumed["has prior"]):
        try:
            fit_vqae(codec, sample, config, hooks)
            return codec
        except NothingKnown:
            if not prior_alone:
                raise
            resumed = None
    codec = _initial(sample, without)
    fit_vqae(codec, sample, without, dataclasses.replace(hooks, resumed=resumed))
    return codec


def _check_labels(sample: LabelSample) -> None:
    if sample.support is not None and sample.domain == "logits":
        raise UsageError(
            f"{sample.support.k} logits of each label are known and the other classes have none, which vqae cannot learn; use codec sparse "
            "(the default for such labels) or topk"
        )
    largest = float(sample.seen.abs().max())
    if largest > torch.finfo(torch.float16).max:
        raise BadLabels(
            f"a label holds {largest:.3g}; the decoder is stored in fp16, whose largest number is 65504: clamp the labels "
            "(a masked class needs no less than -100)"
        )


def _initial(sample: LabelSample, config: FitConfig) -> VqaeCodec:
    with torch.random.fork_rng(devices=[]):  # the layers draw their first weights from the global generator
        torch.default_generator.manual_seed(config.seed)
        return VqaeCodec(resolve(config, dataset_stats(sample)))


def fit_vqae(codec: VqaeCodec, sample: LabelSample, config: FitConfig, hooks: FitHooks) -> None:
    """Fit `codec` in place; the same seed on the same machine gives the same bytes, interrupted and resumed or not."""
    device = torch.device(config.device)
    codec.to(device)
    parts = (make_split(codec, sample, "seen", device), make_split(codec, sample, "held", device))
    state = hooks.resumed or {"stage": 0, "seed": config.seed, "training": None}
    if state["stage"] == 0 and state["training"] is None:
        generator = torch.Generator().manual_seed(config.seed)
        initialize_map(codec, parts[0], generator)
    if state["stage"] > 0 or state["training"] is not None:
        _restore(codec, parts, state)
    epochs = default_epochs(sample) if config.epochs is None else config.epochs
    rates = _rates(config, codec)
    while state["stage"] <= ROUNDS:
        stage = state["stage"]
        if stage == 0 and codec.config.prior is not None:
            _train(codec, parts, epochs, state, hooks)
            if config.prior is None and not _earns(codec, parts):
                if not codec.config.slots:
                    raise NothingKnown(
                        "0 slots leave nothing but a prior, and it knows these labels no better than their mean does; give --bits"
                    )
                _forget_prior(codec, parts)
        elif stage > 0 and codec.config.slots:
            _train(codec, parts, epochs, state, hooks)
        if stage == 0 and codec.config.slots:
            generator = torch.Generator().manual_seed(config.seed + 1)
            hooks.progress("codebooks", 0, 1, {})
            initialize_codebooks(codec, parts[0], generator)
            hooks.progress("codebooks", 1, 1, {})
        if stage < ROUNDS and codec.config.slots:
            hooks.progress("choosing codes", 0, 1, {})
            _choose(codec, parts, rates, sample.total)
            hooks.progress("choosing codes", 1, 1, {})
        state = {
            "stage": stage + 1, "seed": config.seed, "training": None,
            "codec": copy.deepcopy(codec.state_dict()),  # before it is rounded, which must happen once
            "has prior": codec.config.prior is not None, "codes": [part.codes for part in parts],
        }  # fmt: skip
        hooks.save(state)
    codec.round()
    if codec.config.variable:
        set_rate_multiplier(codec, parts, sample.total, PRICED_LAST)
    alone = [0] if codec.config.prior is not None and len(rates) > 1 else []  # the prior, which is a rate as well
    set_gain(codec, parts[0], rates + alone, config.gain)
    above = codec
    for slots in rates[1:]:
        above = codec.nested[slots] = _fit_cheaper(above, slots, parts, epochs, config, state, hooks)
    codec.cpu()


def _fit_cheaper(
    codec: VqaeCodec, slots: int, parts: tuple[Split, Split], epochs: int, config: FitConfig, state: dict[str, Any], hooks: FitHooks
) -> VqaeCodec:
    """The codec of the first slots of `codec` with an output map, codebooks and a prior's network that need not serve the rates above; the
    image vectors serve all. Each rate begins with the parts of the one above, which have gone half of the way.

    They have said all they can without codes; a map shared by all rates costs the cheapest a tenth in KL, and a map of its own no byte
    of a `.vql`.
    """
    done, part = state.setdefault("cheaper", {}), codec.truncate(slots).to(parts[0].labels.device)
    if slots in done:
        if "decoder.lift" not in done[slots]:
            part.calibrate()
        part.load_state_dict(done[slots])
        return part.cpu().eval()
    part.shares_images = True
    if part.decoder.prior is not None:
        part.decoder.prior.images.requires_grad_(False)
    some = tuple(dataclasses.replace(one, codes={}) for one in parts)
    _choose(part, (some[0], some[1]), [slots])
    quiet = FitHooks(progress=hooks.progress)  # a rate takes seconds: one that was interrupted begins again
    title = f"{sum(part.code_bits)} bits"
    passes = max(1, round(CHEAPER_EPOCHS * epochs))
    _train(part, (some[0], some[1]), passes, {"stage": ROUNDS + slots, "seed": config.seed, "training": None}, quiet, title)
    part.round()
    set_gain(part, some[0], [slots], config.gain)
    done[slots] = part.state_dict()
    hooks.save(state)
    part.requires_grad_(True)
    return part.cpu().eval()


def _rates(config: FitConfig, codec: VqaeCodec) -> list[int]:
    """Slots that the codec is trained for, its own first. Within a budget no other rate can be meant; else every halving is.

    Variable labels are trained at the one rate that their price is found for.
    """
    rates, whole = [codec.config.slots], config.bytes is not None or config.ratio is not None or config.variable_rate
    while rates[-1] > 1 and not whole and codec.config.quantizer == "residual":
        rates.append(rates[-1] // 2)
    return rates


def _restore(codec: VqaeCodec, parts: tuple[Split, Split], state: dict[str, Any]) -> None:
    if codec.config.prior is not None and not state["has prior"]:
        _forget_prior(codec, parts)
    codec.load_state_dict(state["codec"])
    for part, codes in zip(parts, state["codes"], strict=True):
        part.codes = codes


def _forget_prior(codec: VqaeCodec, parts: tuple[Split, Split]) -> None:
    codec.forget_prior()
    for part in parts:
        part.known = None


def _earns(codec: VqaeCodec, parts: tuple[Split, Split]) -> bool:
    """Whether the prior predicts held-out labels better than their mean does, by a share that is worth its bytes."""
    seen, held = parts
    constant = _best_constant(_mean_pull(seen), codec.config.domain, codec.config.temperature)
    return _judge(codec, held)["loss"] < (1 - EARNS) * _judge(codec, held, constant)["loss"]


def _best_constant(pull: Tensor, domain: str, temperatures: tuple[float, ...]) -> Tensor:
    """[1, C] logits that are the best of all that are the same for every label, from the labels' mean pull [1, C].

    No formula gives them where there are several temperatures; the loss is convex.
    """
    logits = torch.zeros_like(pull, requires_grad=True)
    solver = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = likelihood_of(domain).cross_entropy(logits, pull, temperatures).sum()
        value.backward()
        return value

    solver.step(loss)
    return logits.detach()


def _mean_pull(part: Split) -> Tensor:
    """[1, C]; the loss is linear in it."""
    total = sum(part.pull(at).sum(0, keepdim=True) for at in part.chunks())
    assert isinstance(total, Tensor)
    return total / len(part.labels)


@torch.no_grad()
def _choose(codec: VqaeCodec, parts: tuple[Split, Split], rates: list[int], total: int = 0) -> None:
    """Of few bits a number, by the decoder as it will be stored: what they round away would mislead. Of more, by the decoder as trained."""
    trained = copy.deepcopy(codec.decoder.state_dict())
    if codec.config.weight_bits < FREE_BITS:
        codec.round()
    if codec.config.variable:
        set_rate_multiplier(codec, parts, total, PRICED)
    for part in parts:
        part.codes = {slots: codec.choose(part.labels, part.known, slots) for slots in rates}
    codec.decoder.load_state_dict(trained)


def _train(
    codec: VqaeCodec, parts: tuple[Split, Split], epochs: int, state: dict[str, Any], hooks: FitHooks, title: str | None = None
) -> None:
    """AdamW on the mixed KL, on weights as they will be stored; ends with those of the epoch that was best on held-out labels."""
    decoder, (seen, held), config = codec.decoder, parts, codec.config
    stage, count = state["stage"], len(seen.labels)
    images = [weight for name, weight in decoder.named_parameters() if name == "prior.images"]
    others = [weight for name, weight in decoder.named_parameters() if name != "prior.images"]
    batch = max(MIN_BATCH, min(BATCH, count // BATCHES))
    rate = RATE * math.sqrt(max(1, batch / RATE_UP_TO)) * (1 if stage == 0 else 0.5)
    groups: list[dict[str, Any]] = [{"params": others, "lr": rate, "weight_decay": 0.01}]
    groups += [{"params": images, "lr": 2 * rate, "weight_decay": 0.0}] if images else []
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps = max(1, epochs * -(-count // batch))
    warm = 0.1 if steps != 10 else 0.2  # with a warm-up of just one step torch divides 0 by 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], steps, pct_start=warm)
    best, best_weights, first = math.inf, copy.deepcopy(decoder.state_dict()), 0
    if state["training"] is None:
        best = _judge(codec, held)["loss"] if stage else math.inf
    else:
        resumed = state["training"]
        decoder.load_state_dict(resumed["decoder"])
        optimizer.load_state_dict(resumed["optimizer"])
        schedule.load_state_dict(resumed["schedule"])
        best, best_weights, first = resumed["best"], resumed["best_weights"], resumed["epoch"]
    # No softmax sees a label's mean over classes, but squared error does; the output map is free to say it, and little weight suffices.
    likelihood = likelihood_of(config.domain)
    level_weight = LEVEL * sum(map(temperature_weight, config.temperature)) if likelihood.shift_invariant else 0.0
    title = title or (f"decoder, round {stage}" if stage else "prior")
    for epoch in range(first, epochs):
        shuffle = torch.Generator().manual_seed(state["seed"] * 1_000_003 + stage * 10_007 + epoch)
        for at in torch.randperm(count, generator=shuffle).to(seen.labels.device).split(batch):
            rough = config.weight_bits < 8 and epoch >= epochs // 2
            weights: dict[str, Tensor] = _as_stored(codec) if rough else dict(decoder.named_parameters())
            known = None if seen.known is None else seen.known.rows(at)
            codes = _codes_of_a_rate(seen, shuffle)
            codes = seen.none(at) if codes is None else codes[at]
            out = functional_call(decoder, weights, (codes, known), {"quick": True})
            loss = likelihood.cross_entropy(seen.visible(out, at), seen.pull(at), config.temperature)
            loss = loss + level_weight * F.huber_loss(out.mean(1), seen.level[at], reduction="none")
            loss = loss.mean() if seen.weight is None else (loss * seen.weight[at]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        figures = _judge(codec, held)
        if figures["loss"] < best:
            best, best_weights = figures["loss"], copy.deepcopy(decoder.state_dict())
        hooks.save({
            **state, "codec": codec.state_dict(), "has prior": config.prior is not None, "codes": [part.codes for part in parts],
            "training": {
                "decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                "best": best, "best_weights": best_weights, "epoch": epoch + 1,
            },
        })  # fmt: skip
        hooks.progress(title, epoch + 1, epochs, figures)
    decoder.load_state_dict(best_weights)


def _codes_of_a_rate(part: Split, generator: torch.Generator) -> Tensor | None:
    """Mostly those of the codec's own rate, else those of one of the cheaper ones; None while there are none."""
    rates = sorted(part.codes, reverse=True)
    if len(rates) > 1 and float(torch.rand((), generator=generator)) < CHEAPER:
        return part.codes[rates[int(torch.randint(1, len(rates), (), generator=generator))]]
    return part.codes[rates[0]] if rates else None


def _as_stored(codec: VqaeCodec) -> dict[str, Tensor]:
    """The decoder's weights as storage rounds them, with the gradient of those that they came from (straight-through)."""
    weights = dict(codec.decoder.named_parameters())
    with torch.no_grad():
        off = {name: stored - weights[name] for name, stored in codec.rounded_decoder().items()}
    return {name: weight + off[name] for name, weight in weights.items()}


@torch.no_grad()
def _judge(codec: VqaeCodec, part: Split, constant: Tensor | None = None) -> dict[str, float]:
    """Held-out loss (`mixed_kl_divergence`), and KL at each temperature, of the decoder as it will be stored, or of `constant` logits [1, C]."""
    config = codec.config
    likelihood = likelihood_of(config.domain)
    figures = likelihood.distortion(temperatures=config.temperature)
    weights = codec.rounded_decoder()
    for at in part.chunks(JUDGED):
        known = None if part.known is None else part.known.rows(at)
        codes = part.codes[max(part.codes)][at] if part.codes else part.none(at)
        raw = as_logits(part.labels[at], config.domain)
        said = functional_call(codec.decoder, weights, (codes, known)) if constant is None else constant.expand_as(raw)
        if config.head:
            said = join(said, *split(raw, config.head, config.temperature), config.temperature)
        figures.add(raw, said)
    found = {name: value for name, value in figures.figures().items() if name.startswith(likelihood.figure)}
    return {"loss": sum(temperature_weight(t) * found[f"{likelihood.figure}{t:g}"] for t in config.temperature), **found}
