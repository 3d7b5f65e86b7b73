"""Train decoder and prior on fixed codes, and keep the weights of the best epoch by held-out loss."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.vqae.codec import VqaeCodec
from vqlabel.codecs.vqae.fit.evaluate import evaluate
from vqlabel.codecs.vqae.fit.split import Split
from vqlabel.metrics.distortion import temperature_weight
from vqlabel.metrics.likelihood import likelihood_of

LAST_STAGE = 2  # stages 1 and 2 train the decoder; the codes are chosen again before each
MAX_BATCH, MIN_BATCH = 512, 32  # labels per step
MIN_STEPS = 60  # steps per epoch before batches grow beyond MIN_BATCH
LEARNING_RATE = 2e-3  # peak; image vectors get twice that, because their gradients are sparse
RATE_BATCH = 256  # labels per step; for larger batches the learning rate grows with the square root
MEAN_LOGIT_WEIGHT = 0.1  # weight of the error of a label's mean logit, relative to the KL
NESTED_SHARE = 0.25  # share of the steps that train on codes of lower rates, which are trained again later


def train_decoder(
    codec: VqaeCodec, splits: tuple[Split, Split], epochs: int, state: dict[str, Any], hooks: FitHooks, title: str | None = None
) -> None:
    """Minimise the mixed KL with AdamW; the second half of the epochs quantizes weights of fewer than 8 bits.

    Args:
        splits: training and held-out labels.
        state: of the fit; `state["training"]` is an interrupted training to resume, or None.
        title: name of the stage for `hooks.progress`.
    """
    stage = state["stage"]
    training = _Training(codec, splits, epochs, state)
    title = title or (f"decoder, round {stage}" if stage else "prior")
    for epoch in range(training.first_epoch, epochs):
        training.run_epoch(epoch)
        figures = evaluate(codec, splits[1])
        training.keep_best(figures["loss"])
        hooks.save(training.state(epoch + 1))
        hooks.progress(title, epoch + 1, epochs, figures)
    codec.decoder.load_state_dict(training.best_weights)


class _Training:
    """Optimizer, schedule and best weights of one training, new or resumed from `state["training"]`."""

    def __init__(self, codec: VqaeCodec, splits: tuple[Split, Split], epochs: int, state: dict[str, Any]) -> None:
        self.codec, self.splits, self.epochs, self.fit_state = codec, splits, epochs, state
        self.batch = max(MIN_BATCH, min(MAX_BATCH, len(splits[0].labels) // MIN_STEPS))
        self.optimizer, self.schedule = self._optimizer()
        # Softmax ignores a label's mean logit, squared error does not: the output map can hold it, and a small weight
        # is enough.
        self.likelihood = likelihood_of(codec.config.domain)
        weight = MEAN_LOGIT_WEIGHT * sum(map(temperature_weight, codec.config.temperature))
        self.mean_logit_weight = weight if self.likelihood.shift_invariant else 0.0
        self.best, self.best_weights, self.first_epoch = math.inf, copy.deepcopy(codec.decoder.state_dict()), 0
        if state["training"] is not None:
            self._resume(state["training"])
        elif state["stage"]:
            self.best = evaluate(codec, splits[1])["loss"]

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW, with a group of its own for image vectors, and a one-cycle schedule of all steps."""
        parameters = dict(self.codec.decoder.named_parameters())
        images = [weight for name, weight in parameters.items() if name == "prior.images"]
        others = [weight for name, weight in parameters.items() if name != "prior.images"]
        rate = LEARNING_RATE * math.sqrt(max(1, self.batch / RATE_BATCH)) * (1 if self.fit_state["stage"] == 0 else 0.5)
        groups: list[dict[str, Any]] = [{"params": others, "lr": rate, "weight_decay": 0.01}]
        groups += [{"params": images, "lr": 2 * rate, "weight_decay": 0.0}] if images else []
        optimizer = torch.optim.AdamW(groups, fused=True)
        steps = max(1, self.epochs * -(-len(self.splits[0].labels) // self.batch))
        warm_up = 0.1 if steps != 10 else 0.2  # a warm-up of exactly one step makes torch divide 0 by 0
        rates = [group["lr"] for group in groups]
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, pct_start=warm_up)

    def _resume(self, saved: dict[str, Any]) -> None:
        self.codec.decoder.load_state_dict(saved["decoder"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.best, self.best_weights, self.first_epoch = saved["best"], saved["best_weights"], saved["epoch"]

    def run_epoch(self, epoch: int) -> None:
        """Train on every label once, in an order that depends on seed, stage and epoch alone."""
        train, seed, stage = self.splits[0], self.fit_state["seed"], self.fit_state["stage"]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stage * 10_007 + epoch)
        quantized = self.codec.config.weight_bits < 8 and epoch >= self.epochs // 2
        for index in torch.randperm(len(train.labels), generator=generator).to(train.labels.device).split(self.batch):
            weights: dict[str, Tensor] = (
                _quantized_weights(self.codec) if quantized else dict(self.codec.decoder.named_parameters())
            )
            codes = _draw_codes(train, generator)
            loss = self._loss(weights, train.no_codes(index) if codes is None else codes[index], index)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()

    def _loss(self, weights: dict[str, Tensor], codes: Tensor, index: Tensor) -> Tensor:
        """Mean loss of the training labels `index` [b], decoded from `codes` [b, j] with `weights`."""
        train = self.splits[0]
        prior_inputs = None if train.prior_inputs is None else train.prior_inputs.rows(index)
        logits = functional_call(self.codec.decoder, weights, (codes, prior_inputs), {"quick": True})
        temperatures = self.codec.config.temperature
        loss = self.likelihood.cross_entropy(train.without_exact(logits, index), train.target(index), temperatures)
        loss = loss + self.mean_logit_weight * F.huber_loss(logits.mean(1), train.mean_logit[index], reduction="none")
        return loss.mean() if train.rest_mass is None else (loss * train.rest_mass[index]).mean()

    def keep_best(self, loss: float) -> None:
        """Keep the decoder's present weights if `loss`, held out, is the lowest so far."""
        if loss < self.best:
            self.best, self.best_weights = loss, copy.deepcopy(self.codec.decoder.state_dict())

    def state(self, epoch: int) -> dict[str, Any]:
        """The fit's state with `epoch` epochs of this training done."""
        codec = self.codec
        return {
            **self.fit_state, "codec": codec.state_dict(), "has prior": codec.config.prior is not None,
            "codes": [split.codes for split in self.splits],
            "training": {
                "decoder": codec.decoder.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "best": self.best, "best_weights": self.best_weights, "epoch": epoch,
            },
        }  # fmt: skip


def _draw_codes(split: Split, generator: torch.Generator) -> Tensor | None:
    """Codes of the codec's own rate, or with probability NESTED_SHARE of a lower one; None before codes are chosen."""
    rates = sorted(split.codes, reverse=True)
    if len(rates) > 1 and float(torch.rand((), generator=generator)) < NESTED_SHARE:
        return split.codes[rates[int(torch.randint(1, len(rates), (), generator=generator))]]
    return split.codes[rates[0]] if rates else None


def _quantized_weights(codec: VqaeCodec) -> dict[str, Tensor]:
    """The decoder's weights as storage rounds them, with the gradient of the unrounded ones (straight-through)."""
    weights = dict(codec.decoder.named_parameters())
    with torch.no_grad():
        error = {name: stored - weights[name] for name, stored in codec.rounded_decoder().items()}
    return {name: weight + error[name] for name, weight in weights.items()}
