"""Latency of one user's answer, one improvement switched on after another, measured in turns in one process."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from recsys.contracts.ids import Tokens
from recsys.model.checkpoint import Checkpoint
from recsys.model.decoder import SequenceModel
from recsys.model.reference import encode
from recsys.runtime.index import ItemIndex
from recsys.runtime.release import Release
from recsys.runtime.summaries import Summaries, SummaryEngine
from recsys.windows import WindowConfig, answer_context, open_window

# B users

WITHOUT_SUMMARIES = "cold without stored summaries"
"""The step of releases whose windows leave some; in the others those of a user are at hand."""
NUM_LENGTHS = 8
"""Lengths of histories that are answered, evenly over twice a window and the stride that follows, its last one too:
there the open window is of every length it can have. At exactly 2,048 events it is short, which flatters."""


def context(window: WindowConfig) -> int:
    """Events that full attention reads: two windows, 2,048 of the default's."""
    return 2 * window.size


@dataclass(frozen=True, slots=True)
class Contenders:
    """The unoptimised pipeline, and ours in float32 and as released."""

    before: Checkpoint
    after: Checkpoint
    float_release: Release
    release: Release


def measure(
    contenders: Contenders,
    events: Tokens,
    num_rounds: int,
    num_threads: int,
    peers: Mapping[str, Callable[[], float]],
) -> dict[str, float]:
    """Milliseconds by step, the mean over lengths of each length's median; a step keeps what those before switched on.

    `events` are tokens of the pruned vocabulary to make histories of. `peers` answer when asked and say how long
    it took; they take their turns with the steps. Products by numpy, as of float items, are of one thread.
    """
    torch.set_num_threads(num_threads)
    steps = {**_steps(contenders, events), **{name: _asked(answer) for name, answer in peers.items()}}
    samples: dict[str, list[list[float]]] = {name: [[] for _ in range(NUM_LENGTHS)] for name in steps}
    # numpy's own threads spin for a while after each product, on a core that the next turn's threads want: with two
    # threads, eager torch took twice as long whenever it came after a search of float items
    with threadpool_limits(limits=1, user_api="blas"):
        for round_ in range(max(num_rounds, NUM_LENGTHS) + 2):  # every length once at least
            for name, step in steps.items():
                step(round_)  # untimed: what the step before left in the processor's caches is not this one's cost
                milliseconds = step(round_)
                if round_ >= 2:  # the first two pay for kernels and memory
                    samples[name][round_ % NUM_LENGTHS].append(milliseconds)
    return {
        name: round(float(np.mean([np.median(values) for values in by_length])), 3)
        for name, by_length in samples.items()
    }


def throughput(contenders: Contenders, events: Tokens, num_rounds: int) -> dict[str, float]:
    """Users encoded per second, `NUM_LENGTHS` different ones in one call; calls take turns, medians."""
    window, engine = contenders.release.window, contenders.release.engine
    histories = [_history(events, length) for length in lengths(window)]
    contexts = [answer_context(history, window) for history in histories]
    full = [history[-context(window) :] for history in histories]
    sessions = engine.open([_with_room(context, window, window.size // 2) for context in contexts])
    new = [events[i : i + 1] for i in range(NUM_LENGTHS)]

    def append() -> None:
        sessions[:] = engine.append(sessions, new)

    calls: dict[str, Callable[[], object]] = {
        "before": lambda: encode(contenders.before.model, full),
        "cold": lambda: engine.open(contexts),
        "warm": append,
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(3, num_rounds // 8)):
        for name, call in calls.items():
            samples[name].append(_timed(call))
    return {name: round(NUM_LENGTHS * 1000 / float(np.median(values)), 1) for name, values in samples.items()}


def _steps(contenders: Contenders, events: Tokens) -> Mapping[str, Callable[[int], float]]:
    window = contenders.release.window
    histories = [_history(events, length) for length in lengths(window)]
    contexts = [answer_context(history, window) for history in histories]
    full = [history[-context(window) :] for history in histories]
    after = contenders.after.model

    def eager(model: SequenceModel, inputs: list[Tokens]) -> Callable[[int], float]:
        index = ItemIndex.build(model.items_VD.detach().numpy())
        return lambda i: _timed(lambda: index.search(encode(model, [inputs[i % NUM_LENGTHS]]), 10))

    def engine(release: Release, inputs: list[Tokens]) -> Callable[[int], float]:
        return lambda i: _timed(
            lambda: release.index.search(release.engine.open([inputs[i % NUM_LENGTHS]])[0].vector_D[None], 10)
        )

    def without_summaries(i: int) -> float:
        """Those of the user's closed windows are encoded too."""
        below = contenders.release.engine
        assert isinstance(below, SummaryEngine)
        at_hand, below.at_hand = below.at_hand, Summaries()
        try:
            return cold(i)
        finally:
            below.at_hand = at_hand

    cold = engine(contenders.release, contexts)
    steps = {
        "before": eager(contenders.before.model, full),
        "pruning": eager(after.without_summaries(), full),
        "window": eager(after, contexts),
        "engine": engine(contenders.float_release, contexts),
        "quantization": cold,
        "cache": _warm(contenders.release, contexts, events),
        f"cold at exactly {context(window):,}": engine(contenders.release, [contexts[0]] * NUM_LENGTHS),
    }
    return steps | ({WITHOUT_SUMMARIES: without_summaries} if window.summary_tokens else {})


def _with_room(context: Tokens, window: WindowConfig, most: int) -> Tokens:
    """Its first events, so many that the last window holds `most` at most."""
    last = len(open_window(context, window))
    return context[: len(context) - last + min(last, most)]


def _warm(release: Release, contexts: list[Tokens], events: Tokens) -> Callable[[int], float]:
    """One new event on top of a kept session, which grows as in service; a full one is opened again, untimed."""
    engine, window = release.engine, release.window
    sessions = engine.open([_with_room(context, window, window.size - 1) for context in contexts])

    def answer(user: int, event: Tokens) -> None:
        sessions[user] = engine.append([sessions[user]], [event])[0]
        release.index.search(sessions[user].vector_D[None], 10)

    def step(i: int) -> float:
        user, event = i % NUM_LENGTHS, events[i % len(events)][None]
        if sessions[user].length == window.size:
            sessions[user] = engine.open([_with_room(contexts[user], window, window.size // 2)])[0]
        return _timed(lambda: answer(user, event))

    return step


def lengths(window: WindowConfig) -> list[int]:
    """Events of the histories that are answered, 2,048 to 2,764 in windows of 1,024 that share 30 %."""
    least = context(window)
    return [int(length) for length in np.linspace(least, least + window.stride - 1, NUM_LENGTHS).round()]


def _asked(answer: Callable[[], float]) -> Callable[[int], float]:
    """A peer as a step: it times itself."""
    return lambda _: answer()


def _history(events: Tokens, length: int) -> Tokens:
    return np.resize(events, length)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000
