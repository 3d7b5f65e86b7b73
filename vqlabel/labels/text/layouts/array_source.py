"""Groups of arrays, one per file -> documents. A file is opened for every read: a dump may have 100,000 of them."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqlabel.errors import BadLabels, UsageError, require
from vqlabel.labels.text.layouts.array_groups import ArrayGroup
from vqlabel.labels.text.layouts.layout import TextOptions
from vqlabel.labels.text.source import TextAbout, TextDocument, TextSource

_NAME, _SHA256 = "{}_name", "{}_sha256"  # keys of metadata, besides "{}", whose value is either


class ArraySource(TextSource):
    """Documents in arrays.

    Args:
        path: that the user passed.
        layout: name of the layout.
        groups: at least one.
        metadata: of each group's file; those of a dump agree.

    Raises:
        UsageError: an option does not fit the dump.
        BadLabels: the groups differ in domain, width, type or metadata.
    """

    def __init__(
        self, path: Path, layout: str, groups: Sequence[ArrayGroup], metadata: Sequence[Mapping[str, str]], options: TextOptions
    ) -> None:
        self.path, self._groups = path, groups
        self._ends = np.cumsum([len(group.lengths) for group in groups])
        for group, texts in zip(groups, metadata, strict=True):
            _check_same(group, groups[0], texts, metadata[0])
        self._layer = self._choose_layer(options.layer)
        self.about = self._about(layout, metadata[0], options.vocab)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[D]"""
        return np.concatenate([group.lengths for group in self._groups])

    @property
    def other_layers(self) -> Mapping[int, TextSource]:
        """The dump read at each of its layers but the one that is read."""
        return {layer: self._at(layer) for layer in range(self._groups[0].layers) if layer != self._layer}

    def _at(self, layer: int) -> "ArraySource":
        other = copy(self)
        other._layer, other.about = layer, replace(self.about, details={**self.about.details, "layer": layer})
        return other

    def tokens(self, index: int) -> NDArray[np.int64]:
        """[L]; no row is read."""
        group, document = self._place(index)
        return group.read_tokens(document)

    def _place(self, index: int) -> tuple[ArrayGroup, int]:
        """The group of a document, and its index in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        group = self._groups[number]
        return group, index - int(self._ends[number]) + len(group.lengths)

    def _load(self, index: int) -> tuple[TextDocument, str]:
        group, document = self._place(index)
        rows = group.read_rows(document, self._layer)
        if self.about.domain == "logits":
            rows = rows[:, : self.about.width]
        name = f"{group.path}, document {document}" if len(group.lengths) > 1 else str(group.path)
        return TextDocument(tokens=group.read_tokens(document), rows=rows), name

    def _choose_layer(self, requested: int | None) -> int:
        """The layer to read, counted from 0; adds a note if there are several."""
        layers = self._groups[0].layers
        if not layers:
            require(requested is None, "layer", requested, f"must be left out: {self.path} holds the hidden states of one layer")
            return 0
        layer = layers - 1 if requested is None else requested + layers * (requested < 0)
        require(0 <= layer < layers, "layer", requested, f"must be 0..{layers - 1}: {self.path} holds {layers} layers")
        if layers > 1 and requested is None:
            self.notes.append(
                f"{self.path}: holds {layers} layers of hidden states; the last one is read, to choose another pass layer="
            )
        return layer

    def _about(self, layout: str, metadata: Mapping[str, str], vocab: int | None) -> TextAbout:
        first = self._groups[0]
        width, is_logits = first.rows.shape[-1], first.domain == "logits"
        recorded = _vocabulary(metadata, first.path)
        if is_logits:
            require(recorded is None or recorded <= width, f"{first.path}: vocabulary", recorded, f"must be at most {width}, the width of its logits", BadLabels)  # fmt: skip
            recorded = recorded or width
        vocabulary = settle_vocabulary(recorded, vocab, self.path)
        if is_logits and vocabulary != width:
            assert vocabulary is not None
            self.notes.append(
                f"{self.path}: logits of {width} ids are cut to the {vocabulary} of the vocabulary; the others are padding"
            )
            width = vocabulary
        details: dict[str, Any] = {"array": first.rows.name}
        if first.layers:
            details |= {"layer": self._layer, "layers": first.layers}
        return TextAbout(
            layout=layout,
            domain=first.domain,
            width=width,
            dtype=first.rows.dtype,
            vocabulary=vocabulary,
            tokenizer=_identity(metadata, "tokenizer"),
            teacher=_identity(metadata, "teacher"),
            details=details,
        )


def settle_vocabulary(recorded: int | None, requested: int | None, path: Path) -> int | None:
    """V: as the user says, but at most as the dump records; None if neither does.

    Raises:
        UsageError: the user's is larger, or no vocabulary.
    """
    require(requested is None or requested >= 2, "vocab", requested, "must be 2 or more")
    if recorded is not None and requested is not None and requested > recorded:
        raise UsageError(
            f"vocab is {requested}; {path} records a vocabulary of {recorded}: pass that of the dump's tokenizer, or leave it out"
        )
    return recorded if requested is None else requested


def _check_same(group: ArrayGroup, first: ArrayGroup, metadata: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises BadLabels if two files cannot be of one dump, or one has rows of other tokens than the next."""
    if (group.rows.name, group.rows.dtype) != (first.rows.name, first.rows.dtype):
        raise BadLabels(
            f"{group.path}: {group.rows} differs from {first.rows} in {first.path}; a dump has rows of one name and type"
        )
    if (group.layers, group.rows.shape[-1]) != (first.layers, first.rows.shape[-1]):
        raise BadLabels(
            f"{group.path}: {group.rows} differs from {first.rows} in {first.path} in width or layers: a dump has one teacher"
        )
    if (shift := metadata.get("shift", "1")) != "1":
        raise BadLabels(f"{group.path}: its metadata record a shift of {shift[:80]!r}; row t must be of token t + 1, a shift of 1")
    for key in ("vocabulary", *(form.format(of) for of in ("tokenizer", "teacher") for form in ("{}", _NAME, _SHA256))):
        if metadata.get(key) != expected.get(key):
            raise BadLabels(
                f"{group.path}: {key} is {str(metadata.get(key))[:80]!r}, but {str(expected.get(key))[:80]!r} in {first.path}: a dump has one"
            )


def _vocabulary(metadata: Mapping[str, str], path: Path) -> int | None:
    text = metadata.get("vocabulary")
    if text is None:
        return None
    valid = text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 2
    require(valid, f"{path}: vocabulary in the metadata", text[:80], "must be a whole number, at least 2", BadLabels)
    return int(text)


def _identity(metadata: Mapping[str, str], of: str) -> dict[str, str]:
    """Name and sha256 of a tokenizer or teacher, as far as the metadata have them."""
    identity = {}
    if text := metadata.get(of):
        is_sum = len(text) == 64 and set(text) <= set("0123456789abcdef")
        identity["sha256" if is_sum else "name"] = text
    for key, form in (("name", _NAME), ("sha256", _SHA256)):
        if text := metadata.get(form.format(of)):
            identity[key] = text
    return identity
