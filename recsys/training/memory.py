"""What training will need of memory, said before it starts: most of it counted on a small batch, not guessed."""

from dataclasses import asdict, dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from recsys.dataset import Histories
from recsys.model.decoder import SequenceModel
from recsys.model.loss import CHUNK_ELEMENTS
from recsys.training.batches import Batch
from recsys.training.loop import Trainer, WindowStream

_PROBE_TOKENS = 512
_FLOAT_BYTES = 4
_LATER_BYTES = 64_000_000
"""Libraries that are loaded on the way (search, pictures) and pools of the first steps, as measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes by what they are for."""

    program: int
    """Python, torch and what loading left behind: measured."""
    data: int
    """Histories that are trained on."""
    weights: int
    """The model's own, their average, and the best so far."""
    optimizer: int
    """Gradients and two moments of each weight."""
    activations: int
    """What a batch of the recipe's size keeps for the backward pass."""
    scratch: int
    """Logits, gradients under way (a quarter of the activations, as measured), libraries, copies of validation."""

    @property
    def total(self) -> int:
        """The expected peak of the process."""
        return sum(asdict(self).values())

    @property
    def on_gpu(self) -> int:
        """What of it a GPU has to hold, if one trains."""
        return self.total - self.program - self.data

    def line(self, free_on_gpu: int | None = None) -> str:
        """The whole and its parts in one line, with a warning where the machine, or its GPU, has less.

        `free_on_gpu` is what the GPU that trains has left, in bytes.
        """
        parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in asdict(self).items())
        free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
        short = "" if self.total < free else f"; only {free / 1e6:,.0f} MB are free: lower batch_tokens or width"
        gpu = ""
        if free_on_gpu is not None:
            gpu = f"; {self.on_gpu / 1e6:,.0f} MB of it on the GPU"
            if self.on_gpu > free_on_gpu:
                gpu += f", where only {free_on_gpu / 1e6:,.0f} MB are free: lower batch_tokens or width"
        return f"needs about {self.total / 1e6:,.0f} MB of memory ({parts}){short}{gpu}"


def free_on(device: torch.device) -> int | None:
    """Bytes that a GPU has left; None of the processor."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def estimate(trainer: Trainer, stream: WindowStream, histories: Histories) -> MemoryNeed:
    """The peak to expect of training with these batches. The trainer's state and generators stay as they are."""
    parameters = list(trainer.model.parameters())
    weights = sum(weight.nbytes for weight in parameters)
    items = trainer.model.embedding.weight.nbytes
    kept, largest = _kept_for_backward(trainer, stream.longest_batch, stream.longest_row)
    data = histories.tokens.nbytes + histories.timestamps_ms.nbytes + histories.offsets.nbytes
    resident = psutil.Process().memory_info().rss
    backward = kept // 4 + 2 * largest + _logit_bytes(trainer, stream.longest_batch)
    backward += _summary_logit_bytes(trainer.model, stream.longest_batch)
    # a gather of item vectors gives a gradient as large as all of them; validation copies weights and items
    scratch = _LATER_BYTES + 2 * items + max(backward, weights + items)
    return MemoryNeed(
        program=max(0, resident - data - 2 * weights),
        data=data,
        weights=3 * weights,
        optimizer=3 * weights,
        activations=kept,
        scratch=scratch,
    )


def _kept_for_backward(trainer: Trainer, batch_tokens: int, longest: int) -> tuple[int, int]:
    """Bytes that autograd keeps of a batch of so many tokens, and of the largest single tensor among them.

    Counted on a small batch: all of it grows with the number of events (fused attention keeps no matrix of scores),
    which with summaries are read more than once in rows of several windows, the longest of `longest` events.
    """
    sizes: dict[int, int] = {}
    known = {weight.untyped_storage().data_ptr() for weight in trainer.model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    model = trainer.model
    length = min(batch_tokens, _PROBE_TOKENS, model.max_length)
    while model.num_rows(length) > length:  # in one window no summary is read
        length //= 2
    num_items = trainer.model.embedding.num_embeddings - 1
    tokens_1L = torch.from_numpy(1 + np.arange(length, dtype=np.int64) % num_items)[None]
    trainer.model.train()
    devices = [device] if (device := trainer.processes.device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss, _ = trainer.loss(Batch(tokens_1L, tokens_1L))
        del loss  # only now are all sizes known, and nothing is kept
    scale = batch_tokens / length * model.num_rows(longest) / longest
    return int(scale * sum(sizes.values())), int(scale * max(sizes.values()))


def _logit_bytes(trainer: Trainer, batch_tokens: int) -> int:
    """Logits and their copies, which the loss holds for a moment."""
    if trainer.num_negatives:
        return _FLOAT_BYTES * batch_tokens * trainer.num_negatives
    num_items = trainer.model.embedding.num_embeddings - 1
    return 2 * _FLOAT_BYTES * min(CHUNK_ELEMENTS, batch_tokens * num_items)


def _summary_logit_bytes(model: SequenceModel, batch_tokens: int) -> int:
    """Scores of all items by a chunk of summaries, and their gradient."""
    one = model.num_summary_vectors * (model.embedding.num_embeddings - 1)
    return 2 * _FLOAT_BYTES * max(one, min(CHUNK_ELEMENTS, one * (batch_tokens // model.max_length)))
