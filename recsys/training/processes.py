"""Several processes that train one model: each computes its rows of every batch. `torchrun` starts them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from recsys.contracts.errors import ConfigError
from recsys.training.batches import Batch
from recsys.training.config import Device

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those that train together. All draw the same random numbers and hold the same weights."""

    rank: int = 0
    count: int = 1
    local_count: int = 1
    """Those on this machine."""
    device: torch.device = CPU
    """Of this process; each has a GPU of its own."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that validates, speaks and writes."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """The rows of a batch that this process computes; with more processes than rows, the first row."""
        if self.count == 1:
            return batch
        rows = self.rows(len(batch.tokens_BL))
        return Batch(batch.tokens_BL[rows], batch.targets_BL[rows])

    def here(self, batch: Batch) -> Batch:
        """The batch on this process's device."""
        return Batch(batch.tokens_BL.to(self.device), batch.targets_BL.to(self.device))

    def rows(self, num_rows: int) -> slice:
        """Which rows those are."""
        return slice(self.rank, None, self.count) if self.rank < num_rows else slice(0, 1)

    def weight(self, batch: Batch, num_targets: int, num_all_targets: int) -> float:
        """What the mean loss of `num_targets` of this process counts in the mean of the whole batch."""
        return num_targets / num_all_targets if self.rank < len(batch.tokens_BL) else 0.0

    def add_up(self, parameters: Sequence[Tensor], value: float) -> float:
        """Gradients become their sums over all processes; returns the sum of `value`.

        A parameter that a step has not read has a gradient of zeros, so that the optimizer treats it alike whatever
        the number of processes.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.count == 1:
            return value
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [torch.tensor([value], device=self.device)])
        torch.distributed.all_reduce(flat)
        start = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].view_as(gradient)
            start += gradient.numel()
        return float(flat[-1])

    def agreed(self, *values: float) -> list[float]:
        """The values of the first process, in all of them."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(tensor, src=0)
        return [float(value) for value in tensor]

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            torch.distributed.barrier()


def device_of(wanted: Device, place: int = 0) -> torch.device:
    """The device of the process at a place among those of its machine.

    Raises:
        ConfigError: fewer GPUs than processes.
    """
    num_gpus = torch.cuda.device_count()
    if wanted is Device.CPU or (wanted is Device.AUTO and not num_gpus):
        return CPU
    if place >= num_gpus:
        raise ConfigError(
            f'device "{wanted}": process {place + 1} of this machine needs a GPU of its own, torch finds {num_gpus}; '
            'start fewer processes, or train with device = "cpu"'
        )
    return torch.device("cuda", place)


@contextmanager
def joined(wanted: Device = Device.AUTO) -> Iterator[Processes]:
    """The processes that torchrun started with this one, or this one alone.

    Raises:
        ConfigError: fewer GPUs than processes.
    """
    device = device_of(wanted, int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(
            rank=torch.distributed.get_rank(),
            count=torch.distributed.get_world_size(),
            local_count=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            device=device,
        )
    finally:
        torch.distributed.destroy_process_group()
