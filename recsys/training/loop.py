"""One model under training: a step, the averaged weights, a stretch of steps over shuffled windows."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recsys.contracts.errors import DataError
from recsys.contracts.ids import PAD, Tokens, Vocabulary
from recsys.dataset import Histories
from recsys.model.decoder import ClosedWindows, SequenceModel
from recsys.model.loss import Loss, NegativeSampler, full_softmax_loss, sampled_softmax_loss, summary_loss
from recsys.training import batches
from recsys.training.batches import Batch
from recsys.training.config import Recipe
from recsys.training.precision import MixedPrecision
from recsys.training.processes import Processes

_BATCHES_PER_EPOCH = 200
_LEAST_BATCH_TOKENS, _MOST_BATCH_TOKENS = 512, 4096
_PROBE_STEPS = 8
_NAMED = 5
"""Users and items by which a batch is named."""


class DivergedError(DataError):
    """Training gives no numbers any more: at which batch, whose windows they are, how the first one begins."""

    def __init__(self, where: str, tokens: list[int], problem: str) -> None:
        super().__init__(f"{where}, the first begins with tokens {tokens}: {problem}")
        self._where, self._tokens, self._problem = where, tokens, problem

    def named(self, vocabulary: Vocabulary) -> DataError:
        """The same with item_ids, which can be looked up in the log."""
        item_ids = ", ".join(repr(vocabulary.item(token).item_id) for token in self._tokens)
        return DataError(f"{self._where}, the first begins with items {item_ids}: {self._problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What some steps in a row cost and gave."""

    steps: int
    loss: float
    """Mean cross-entropy in nats per predicted event, an estimate where negatives are sampled; with what the loss of
    summaries adds to it."""
    tokens: int
    """Events predicted; padding and context not counted."""
    seconds: float


class WindowStream:
    """Batches of a set of histories, one shuffled epoch after another, without end."""

    def __init__(
        self,
        histories: Histories,
        recipe: Recipe,
        generator: np.random.Generator,
        events: Tokens | None = None,
    ) -> None:
        """`events` are what the model reads (see `batches.epoch`); without, the tokens."""
        self._events = histories.tokens if events is None else events
        self._wanted = histories.targets
        windows = batches.training_windows(histories, recipe.window.training_rows)
        self._windows = [w for w in windows if self._wanted[w.first_target : w.stop].any()]
        self._generator = generator
        self._histories = histories
        self._batch_tokens = recipe.training.batch_tokens or _suitable_batch(len(histories.tokens))
        self.epoch_steps = len(batches.plan(self._windows, self._batch_tokens, np.random.default_rng(0)))
        """Batches of an epoch; varies a little with the shuffle."""
        self.longest_batch = max(self._batch_tokens, max(w.stop - w.start for w in self._windows))
        """Padded events of the largest batch there can be."""
        self.longest_row = max(w.stop - w.start for w in self._windows)
        """Events of the longest window."""
        self._begin()

    def _begin(self) -> None:
        """Shuffle for an epoch."""
        self._epoch_state = self._generator.bit_generator.state
        self._taken = 0
        self._epoch = batches.epoch(self._events, self._windows, self._batch_tokens, self._generator, self._wanted)

    def __next__(self) -> Batch:
        batch = next(self._epoch, None)
        if batch is None:
            self._begin()
            batch = next(self._epoch)
        self._taken += 1
        return batch

    def users(self, batch: Batch) -> list[str]:
        """Whose windows a batch of this stream is made of, each user once."""
        return [self._histories.user_ids[row] for row in dict.fromkeys(self._rows(batch))]

    def beginning(self, batch: Batch) -> list[int]:
        """The first tokens of its first window."""
        start, end = batch.starts[0], int(self._histories.offsets[self._rows(batch)[0] + 1])
        tokens: list[int] = self._histories.tokens[start : min(start + _NAMED, end)].tolist()
        return tokens

    def _rows(self, batch: Batch) -> list[int]:
        """The user of each window."""
        rows: list[int] = (np.searchsorted(self._histories.offsets, batch.starts, side="right") - 1).tolist()
        return rows

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain values."""
        return {"epoch": self._epoch_state, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where another stream of the same histories stood."""
        self._generator.bit_generator.state = state["epoch"]
        self._begin()
        for _ in range(state["taken"]):
            next(self)


def _suitable_batch(num_events: int) -> int:
    return int(np.clip(num_events // _BATCHES_PER_EPOCH, _LEAST_BATCH_TOKENS, _MOST_BATCH_TOKENS))


class Trainer:
    """Weights, optimizer, and an exponential average of the weights, which is what is validated and kept."""

    def __init__(
        self,
        model: SequenceModel,
        recipe: Recipe,
        num_events_V: torch.Tensor,
        horizon: int,
        processes: Processes = Processes(),  # noqa: B008 (frozen)
        loss: Loss | None = None,
    ) -> None:
        """`horizon` is the number of last steps that the average is mostly made of; `loss` replaces the softmax.

        The model moves to the device of the processes.
        """
        self.model = model.to(processes.device)
        self.processes = processes
        self._config = recipe.training
        self._other_loss = loss
        self._sampler: NegativeSampler | None = None
        if 0 < self._config.num_negatives < len(num_events_V):
            self._sampler = NegativeSampler(num_events_V, self._config.num_negatives)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay
        )
        self._num_events_V = num_events_V.to(processes.device)
        self._mixed = MixedPrecision(self._config.precision, processes.device)
        self._parameters = list(model.parameters())
        self._weights = [parameter.data for parameter in self._parameters]
        self.averaged = [weight.clone() for weight in self._weights]
        self._horizon = horizon
        self._num_steps = 0

    @property
    def num_negatives(self) -> int:
        """Items that a target is held against; 0: all."""
        return 0 if self._sampler is None else self._config.num_negatives

    @property
    def num_steps(self) -> int:
        """Steps taken so far."""
        return self._num_steps

    def train(
        self,
        stream: WindowStream,
        num_steps: int,
        *,
        rate: Callable[[float], float] = lambda _: 1.0,
        deadline: float = math.inf,
        advance: Callable[[float, int], None] = lambda _, __: None,
    ) -> Stretch:
        """Take `num_steps` steps, or fewer if `time.monotonic()` passes `deadline`.

        `rate` gives the factor on the learning rate for the share of the steps already taken; `advance` is
        called after each step with the mean loss and the number of events so far.
        """
        self.model.train()
        started = time.monotonic()
        total_loss, tokens, steps = 0.0, 0, 0
        while steps < num_steps and (not steps or self.is_before(deadline)):
            loss, count = self._step(stream, rate(steps / num_steps))
            total_loss, tokens, steps = total_loss + loss * count, tokens + count, steps + 1
            advance(total_loss / tokens, tokens)
        return Stretch(steps=steps, loss=total_loss / tokens, tokens=tokens, seconds=time.monotonic() - started)

    def is_before(self, deadline: float) -> bool:
        """Whether `time.monotonic()` has not reached it yet by the clock of the first process."""
        return deadline == math.inf or bool(self.processes.agreed(time.monotonic() < deadline)[0])

    def choose_threads(self, stream: WindowStream) -> None:
        """Take a few steps with one thread and with all cores, and stay with what was faster.

        Several processes divide the cores among themselves instead; a GPU needs none of them.
        """
        if self.processes.device.type != "cpu":
            return
        num_cores = len(os.sched_getaffinity(0))  # those that this process may use
        if self.processes.count > 1:
            torch.set_num_threads(max(1, num_cores // self.processes.local_count))
            return
        speeds = {}
        for num_threads in sorted({1, num_cores}):
            torch.set_num_threads(num_threads)
            self.train(stream, _PROBE_STEPS // 2)  # thread pools start, memory is taken
            stretch = self.train(stream, _PROBE_STEPS)
            speeds[num_threads] = stretch.tokens / stretch.seconds
        torch.set_num_threads(max(speeds, key=lambda n: speeds[n]))

    def _step(self, stream: WindowStream, rate: float) -> tuple[float, int]:
        """One update; returns (mean loss, number of targets)."""
        batch = next(stream)
        self._num_steps += 1
        warmup = min(1.0, self._num_steps / self._config.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * warmup * rate
        self._optimizer.zero_grad()
        loss, count = self.loss(batch)
        self._mixed.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        value = self.processes.add_up(self._parameters, loss.item())
        if not math.isfinite(value):
            raise self._stop(stream, batch, f"loss became {value}; lower learning_rate")
        self._mixed.scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.gradient_clip)
        if problem := self._mixed.problem(norm.item()):
            raise self._stop(stream, batch, problem)
        self._mixed.scaler.step(self._optimizer)
        self._mixed.scaler.update()
        memory = min(1 - 1 / self._horizon, self._num_steps / (self._num_steps + 10))
        torch._foreach_lerp_(self.averaged, self._weights, 1 - memory)
        return value, count

    def loss(self, batch: Batch) -> tuple[torch.Tensor, int]:
        """(mean loss, number of targets) of a batch, in the precision of the recipe.

        With several processes: this one's part of that mean, so that the parts add up to it.
        """
        mine, num_targets = self.processes.here(self.processes.share(batch)), int((batch.targets_BL != PAD).sum())
        if self.processes.count > 1:
            num_rows = len(batch.tokens_BL)
            self.model.dropout.part = self.processes.rows(num_rows), num_rows
        wanted_BL = mine.targets_BL != PAD
        with self._mixed.autocast():
            states_BLD, closed = self.model.with_summaries(mine.tokens_BL)
            hidden_ND = states_BLD[wanted_BL].float()
        loss = self._loss(hidden_ND, mine.targets_BL[wanted_BL] - 1)
        loss = loss * self.processes.weight(batch, len(hidden_ND), num_targets)
        if closed is not None and self._config.summary_loss:
            loss = loss + self._config.summary_loss * self._told(closed, batch)
        return loss, num_targets

    def _told(self, closed: ClosedWindows, batch: Batch) -> torch.Tensor:
        """This process's part of how badly the batch's summaries tell their windows' items, on average."""
        if self.processes.rank >= len(batch.tokens_BL):
            return closed.summaries_NMD.float().sum() * 0
        num_closed = self.model.num_closed(batch.tokens_BL)
        return summary_loss(*closed, self.model.items_VD, self._num_events_V) / max(1, num_closed)

    def _stop(self, stream: WindowStream, batch: Batch, problem: str) -> DivergedError:
        users = stream.users(batch)
        more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
        whose = f"users {', '.join(map(repr, users[:_NAMED]))}{more}"
        where = f"step {self._num_steps}, {len(batch.tokens_BL)} windows of {whose}"
        return DivergedError(where, stream.beginning(batch), problem)

    def _loss(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        if self._other_loss is not None:
            return self._other_loss(hidden_ND, self.model.items_VD, targets_N)
        if self._sampler is None:
            return full_softmax_loss(hidden_ND, self.model.items_VD, targets_N)
        return sampled_softmax_loss(hidden_ND, self.model.items_VD, targets_N, self._sampler)

    def use(self, weights: list[torch.Tensor]) -> None:
        """Go on from these weights; the average begins anew with them."""
        torch._foreach_copy_(self._weights, weights)
        torch._foreach_copy_(self.averaged, weights)

    @contextmanager
    def averaged_in_place(self) -> Iterator[SequenceModel]:
        """The model with the averaged weights, for as long as the block lasts."""
        current = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self.averaged)
        yield self.model
        torch._foreach_copy_(self._weights, current)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on but the batch, by name."""
        tensors = {"num_steps": torch.tensor(self._num_steps), "random": torch.get_rng_state()}
        if self.processes.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.processes.device)
        for i, (weight, averaged) in enumerate(zip(self._weights, self.averaged, strict=True)):
            tensors |= {f"weight.{i}": weight, f"averaged.{i}": averaged}
        for i, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        return tensors | self._mixed.state()

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        self._num_steps = int(tensors["num_steps"])
        torch.set_rng_state(tensors["random"])
        if self.processes.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.processes.device)
        torch._foreach_copy_(self._weights, [tensors[f"weight.{i}"] for i in range(len(self._weights))])
        torch._foreach_copy_(self.averaged, [tensors[f"averaged.{i}"] for i in range(len(self._weights))])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, i, moment = name.split(".")
                moments.setdefault(int(i), {})[moment] = value
        self._mixed.restore(tensors)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
