"""What goes into each weight matrix: statistics of real windows, from one pass of the float model."""

# I inputs of a matrix

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from recsys.contracts.ids import PAD, Tokens
from recsys.dataset import Histories
from recsys.model.decoder import SequenceModel
from recsys.windows import WindowConfig, open_window, padded_batches


@dataclass(slots=True)
class InputStatistics:
    """Sums over the events of the calibration windows; padding is left out."""

    gram_II: Tensor
    mean_abs_I: Tensor
    peak_abs_I: Tensor
    num_events: int

    @property
    def mean_gram_II(self) -> Tensor:
        """Mean of x xᵀ."""
        return self.gram_II / max(1, self.num_events)


Calibration = dict[str, InputStatistics]
"""By name of the matrix within the decoder."""

_FILE: Final = "calibration.safetensors"


def users(histories: Histories, num_windows: int, seed: int) -> npt.NDArray[np.int64]:
    """The users whose windows weights are rounded by: a seeded sample, at most half of all, as others must judge."""
    return np.sort(_shuffled(histories, seed)[: _at_most_half(histories, num_windows)])


def windows(histories: Histories, window: WindowConfig, num_windows: int, seed: int) -> list[Tokens]:
    """Open windows of `users`; longer ones are as likely as shorter ones."""
    return _windows(histories, window, users(histories, num_windows, seed))


def others(histories: Histories, window: WindowConfig, num_windows: int, num_others: int, seed: int) -> list[Tokens]:
    """Open windows of some of those that `users` with the same sizes and seed leaves."""
    start = _at_most_half(histories, num_windows)
    return _windows(histories, window, _shuffled(histories, seed)[start : start + num_others])


def sample(histories: Histories, window: WindowConfig, num_windows: int, seed: int) -> list[Tokens]:
    """Open windows of any users, a seeded sample."""
    return _windows(histories, window, _shuffled(histories, seed)[:num_windows])


def _at_most_half(histories: Histories, num_windows: int) -> int:
    return min(num_windows, max(1, len(histories) // 2))


def _shuffled(histories: Histories, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(len(histories))


def _windows(histories: Histories, window: WindowConfig, users: npt.NDArray[np.int64]) -> list[Tokens]:
    return [open_window(histories[user], window) for user in np.sort(users)]


@torch.inference_mode()
def collect(model: SequenceModel, windows: Sequence[Tokens]) -> Calibration:
    """Statistics of the inputs of every `nn.Linear` of the decoder."""
    statistics: Calibration = {}
    mask = torch.empty(0)

    def record(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            _add(statistics, name, inputs[0].reshape(*mask.shape, -1)[mask].double())

        return hook

    with _hooks(model.decoder, record):
        for _, tokens_BL, _ in padded_batches(windows):
            tokens = torch.from_numpy(tokens_BL).long()
            mask = tokens != PAD
            model.decode(model.embed(tokens))  # windows alone, with or without summaries
    for entry in statistics.values():
        entry.mean_abs_I /= max(1, entry.num_events)
    return statistics


def _add(statistics: Calibration, name: str, inputs_NI: Tensor) -> None:
    width = inputs_NI.shape[1]
    entry = statistics.setdefault(
        name,
        InputStatistics(inputs_NI.new_zeros(width, width), inputs_NI.new_zeros(width), inputs_NI.new_zeros(width), 0),
    )
    entry.gram_II += inputs_NI.T @ inputs_NI
    entry.mean_abs_I += inputs_NI.abs().sum(dim=0)
    if len(inputs_NI):
        entry.peak_abs_I = torch.maximum(entry.peak_abs_I, inputs_NI.abs().amax(dim=0))
    entry.num_events += len(inputs_NI)


@contextmanager
def _hooks(decoder: nn.Module, make: Callable[[str], Callable[[nn.Module, Any], None]]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(make(name))
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def save(calibration: Calibration, folder: Path) -> None:
    """Write `calibration.safetensors`: statistics in float64, by name of the matrix."""
    tensors = {
        f"{name}.{field}": torch.as_tensor(getattr(entry, field))
        for name, entry in calibration.items()
        for field in InputStatistics.__slots__
    }
    safetensors.torch.save_file(tensors, folder / _FILE)


def load(folder: Path) -> Calibration:
    """What `save` wrote, bit for bit."""
    tensors = safetensors.torch.load_file(folder / _FILE)
    names = sorted({key.rpartition(".")[0] for key in tensors})
    return {
        name: InputStatistics(
            tensors[f"{name}.gram_II"],
            tensors[f"{name}.mean_abs_I"],
            tensors[f"{name}.peak_abs_I"],
            int(tensors[f"{name}.num_events"]),
        )
        for name in names
    }
