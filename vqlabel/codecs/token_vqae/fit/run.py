"""The stages of a fit that are done, saved so that an interrupted fit continues where it was."""

import dataclasses
from typing import Any

import torch

from vqlabel.codecs.sample import FitHooks
from vqlabel.codecs.token_vqae.codec import TokenVqae
from vqlabel.codecs.token_vqae.fit.latent import Directions
from vqlabel.codecs.token_vqae.fit.stages import Saving, Stage, train
from vqlabel.codecs.token_vqae.sample import TextSplit

PARTS = ("prior", "codebook", "bias")  # top-level names of the weights that are trained; the others follow from directions


class FitRun:
    """A fit in stages 0, 1, ...: one call of `train` each, then `advance`.

    Args:
        directions: of the latents, which another number of threads would not find again.

    Attributes:
        stage: the one that runs.
        codes, counts: of the labels of this stage, on the device of the codec; None before they are chosen.
    """

    def __init__(self, codec: TokenVqae, directions: Directions, hooks: FitHooks) -> None:
        self.codec, self.progress, self._save_state = codec, hooks.progress, hooks.save
        state = hooks.resumed or {"stage": 0, "training": None, "weights": None, "prior": True, "codes": None, "counts": None}
        device = codec.decoder.bias.device
        self.directions, self.stage, self._resumed = directions, state["stage"], state["training"]
        self._weights, self._has_prior = state["weights"], state["prior"]
        self.codes, self.counts = (None if state[name] is None else state[name].to(device) for name in ("codes", "counts"))

    @torch.no_grad()
    def restore(self) -> None:
        """Return to the weights of an interrupted fit; once."""
        if self._weights is None:
            return
        if not self._has_prior and self.codec.config.prior is not None:
            self.codec.drop_prior()
        weights = dict(self.codec.decoder.named_parameters())
        for name, stored in self._weights.items():
            weights[name].copy_(stored)
        self._weights = None

    def skip_to(self, stage: int) -> None:
        """Go to a stage, unless the fit is further: the stages before it do not apply."""
        self.restore()
        self.stage = max(self.stage, stage)

    def starts(self, stage: int) -> bool:
        """Whether a stage runs of which nothing was saved."""
        return self.stage == stage and self._resumed is None

    def train(self, split: TextSplit, stage: Stage, held_out: TextSplit | None = None) -> None:
        """Train the decoder."""
        train(self.codec.decoder, split, stage, self.progress, held_out, Saving(save=self._save, resumed=self._resumed))

    def advance(self) -> None:
        """Begin the next stage."""
        self.stage, self._resumed, self.codes, self.counts = self.stage + 1, None, None, None
        self._save(None)

    def _save(self, training: dict[str, Any] | None) -> None:
        """Save the fit.

        Args:
            training: the state of this stage's training; None: it has not begun.
        """
        named = self.codec.decoder.named_parameters()
        self._save_state(
            {
                "stage": self.stage, "training": training, "prior": self.codec.config.prior is not None, "codes": self.codes,
                "counts": self.counts, "directions": {f.name: getattr(self.directions, f.name) for f in dataclasses.fields(self.directions)},
                "weights": {name: weight.detach() for name, weight in named if name.split(".")[0] in PARTS},
            }
        )  # fmt: skip
