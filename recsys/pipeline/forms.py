"""Forms of the model, put together of parts: what it reads, its blocks, its output, its loss, how it is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recsys.contracts.events import DEFAULT_EVENT_TYPE
from recsys.contracts.ids import Tokens
from recsys.dataset import Histories
from recsys.model.decoder import SequenceModel
from recsys.model.event_inputs import MOST_GAP, EventInputsModel, gap_numbers, type_numbers
from recsys.model.rival_blocks import CosineModel, GatedModel, HstuModel
from recsys.pipeline.rivals import Rival, Sample, parabola
from recsys.windows import WindowConfig, open_window

INPUTS = ("none", "type", "gap", "type and gap")
OUTPUTS: dict[str, tuple[type[SequenceModel], ...]] = {"plain": (), "cosine": (CosineModel,)}
BLOCKS: dict[str, tuple[type[SequenceModel], ...]] = {"default": (), "gated": (GatedModel,), "hstu": (HstuModel,)}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "parabola": parabola,
    "constant": lambda _: 1.0,
    "linear": lambda taken: 1 - taken,
    "cosine": lambda taken: (1 + math.cos(math.pi * taken)) / 2,
}
"""Factor on the learning rate for the share of the steps already taken; the first steps are a warm-up in all."""


@dataclass(frozen=True, slots=True)
class Forms:
    """Makes rivals that read windows of one size."""

    window: WindowConfig
    num_types: int
    """Of the log's events."""

    def of(self, *, inputs: str = "none", output: str = "plain", blocks: str = "default", **further: Any) -> Rival:
        """The default's form but for what is named; `further` are fields of the rival."""
        read = self._read(inputs)
        parts: tuple[type[SequenceModel], ...] = (*OUTPUTS[output], *BLOCKS[blocks])
        highest = [number for _, number in read]
        build: Any = combined(*((EventInputsModel,) if read else ()), *parts)
        return Rival(
            build=lambda config, num_items: build(config, num_items, self.window.size, *([highest] if read else ())),
            rows=self.window,
            context=lambda events: open_window(events, self.window),
            beside=tuple(numbers for numbers, _ in read),
            **further,
        )

    def _read(self, inputs: str) -> list[tuple[Callable[[Histories], Tokens], int]]:
        """Numbers of each event beside its item, and the highest of them."""
        of_one = {"type": (type_numbers, self.num_types), "gap": (gap_numbers, MOST_GAP)}
        return [numbers for name, numbers in of_one.items() if name in inputs.split(" and ")]


def combined(*parts: type[SequenceModel]) -> Any:
    """The class of a model with all these parts.

    Each of them overrides another step of `SequenceModel` and hands the rest on, so that they stack in any number;
    a part of what an event is read as, whose `__init__` wants more, comes first.
    """
    return type("FormModel", (*parts, SequenceModel), {})


def event_types(of: Sample) -> list[str]:
    """Names of the log's event types, by code."""
    assert of.data is not None
    return list(of.data.manifest.metrics.get("event_types", [DEFAULT_EVENT_TYPE]))


def missing_inputs(of: Sample) -> dict[str, str]:
    """Inputs that the log does not have, and why."""
    assert of.data is not None
    kinds = event_types(of)
    missing: dict[str, str] = {}
    if len(kinds) < 2:
        missing |= dict.fromkeys(("type", "type and gap"), f"all events are of one type, {', '.join(kinds)}")
    if of.data.manifest.metrics.get("split_ms") is None:
        missing |= dict.fromkeys(("gap", "type and gap"), "the log has no timestamps")
    return missing
