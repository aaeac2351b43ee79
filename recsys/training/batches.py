"""Batches of windows: each event of a history that is to be predicted is so exactly once an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.contracts.ids import PAD, Tokens
from recsys.dataset import Histories
from recsys.windows import WindowConfig, cut

# B batch, L window length, F numbers that a model reads of an event

_BUCKET_BATCHES = 16
"""Windows are sorted by length within this many batches' worth, then the batches are shuffled."""


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """Events [start, stop) of the flat tokens; positions before `first_target` are context only."""

    start: int
    stop: int
    first_target: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Input events and, for each position, the event that follows it, PAD where none is to be predicted."""

    tokens_BL: Tensor
    """Or [B, L, F], for a model that reads more of an event than its item."""
    targets_BL: Tensor
    starts: tuple[int, ...] = ()
    """Of each window: where its first event is among the events of all users."""


def training_windows(histories: Histories, config: WindowConfig) -> list[TrainingWindow]:
    """Every window that has something to predict, in order of users."""
    windows = []
    for user, length in enumerate(histories.lengths):
        base = int(histories.offsets[user])
        for window in cut(int(length), config):
            first_target = max(window.first_target, window.start + 1)  # without overlap, the first event has no context
            if first_target < window.stop:
                windows.append(TrainingWindow(base + window.start, base + window.stop, base + first_target))
    return windows


def epoch(
    tokens: Tokens,
    windows: list[TrainingWindow],
    batch_tokens: int,
    generator: np.random.Generator,
    wanted: Tokens | None = None,
) -> Iterator[Batch]:
    """All windows once, in a random order in which the windows of a batch have similar length.

    `wanted` is what each event is as a target, PAD where it is none; without it, its token. `tokens` may have a row
    of numbers for each event, if `wanted` is given.
    """
    wanted = tokens if wanted is None else wanted
    chosen = plan(windows, batch_tokens, generator)
    return (_batch(tokens, wanted, [windows[w] for w in positions]) for positions in chosen)


def plan(windows: list[TrainingWindow], batch_tokens: int, generator: np.random.Generator) -> list[list[int]]:
    """The batches of an epoch, each as positions in `windows`. All that is random happens here."""
    order = generator.permutation(len(windows))
    lengths = np.array([w.stop - w.start for w in windows])
    bucket = _BUCKET_BATCHES * max(1, round(batch_tokens / max(1.0, float(lengths.mean()))))
    chosen: list[list[int]] = []
    for start in range(0, len(order), bucket):
        chunk = order[start : start + bucket]
        chosen.extend(_packed(chunk[np.argsort(lengths[chunk], kind="stable")], lengths, batch_tokens))
    return [chosen[i] for i in generator.permutation(len(chosen))]


def _packed(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> Iterator[list[int]]:
    """Runs of windows whose padded size stays within `batch_tokens`; a longer window goes alone."""
    batch: list[int] = []
    for window in order:
        if batch and (len(batch) + 1) * lengths[window] > batch_tokens:
            yield batch
            batch = []
        batch.append(int(window))
    if batch:
        yield batch


def _batch(tokens: Tokens, wanted: Tokens, windows: list[TrainingWindow]) -> Batch:
    width = max(w.stop - w.start for w in windows) - 1
    tokens_BL = np.full((len(windows), width, *tokens.shape[1:]), PAD, dtype=np.int64)
    targets_BL = np.full((len(windows), width), PAD, dtype=np.int64)
    for row, w in enumerate(windows):
        length = w.stop - w.start
        tokens_BL[row, : length - 1] = tokens[w.start : w.stop - 1]
        targets_BL[row, w.first_target - w.start - 1 : length - 1] = wanted[w.first_target : w.stop]
    return Batch(torch.from_numpy(tokens_BL), torch.from_numpy(targets_BL), tuple(w.start for w in windows))
