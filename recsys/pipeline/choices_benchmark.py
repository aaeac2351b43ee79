"""What the default is made of: its form against others in what it reads, its loss, its output and its blocks.

All are trained alike: the same users, batches, epochs, seeds and item vectors to start from. What they rank is
compared on validation events: no test set is looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.contracts.events import DEFAULT_EVENT_TYPE
from recsys.contracts.ids import Tokens
from recsys.contracts.protocol import Protocol
from recsys.dataset import Histories
from recsys.event_table import is_wanted
from recsys.model.binary_loss import BinaryLoss
from recsys.model.config import ModelConfig
from recsys.model.decoder import SequenceModel
from recsys.model.event_inputs import MOST_GAP, EventInputsModel, gap_numbers, type_numbers
from recsys.model.loss import Loss
from recsys.model.rival_blocks import CosineModel, GatedModel, HstuModel
from recsys.pipeline.kept_runs import KeptRuns
from recsys.pipeline.rivals import Rival, Sample, chosen, compare, sample
from recsys.windows import WindowConfig, open_window

REFERENCE = "default"
NEEDS_TYPES, NEEDS_TIMES = frozenset({"type", "type and gap"}), frozenset({"gap", "type and gap"})
_GBCE = BinaryLoss(num_negatives=256, calibration=0.75, is_shared=True)
_BCE = BinaryLoss(num_negatives=1, calibration=0.0, is_shared=False)


@dataclass(frozen=True, slots=True)
class _Forms:
    """Makes rivals that read windows of one size."""

    window: WindowConfig

    def of(
        self,
        build: Callable[[ModelConfig, int, int], SequenceModel] = SequenceModel,
        *,
        beside: tuple[Callable[[Histories], Tokens], ...] = (),
        loss: Loss | None = None,
    ) -> Rival:
        return Rival(
            build=lambda config, num_items: build(config, num_items, self.window.size),
            rows=self.window,
            context=lambda events: open_window(events, self.window),
            beside=beside,
            loss=loss,
        )

    def reading(self, *inputs: tuple[Callable[[Histories], Tokens], int]) -> Rival:
        """With these numbers of each event, each up to a highest one, beside its item."""
        highest = [number for _, number in inputs]
        return self.of(
            lambda config, num_items, length: EventInputsModel(config, num_items, length, highest),
            beside=tuple(numbers for numbers, _ in inputs),
        )


def rivals(window: WindowConfig, num_types: int) -> dict[str, Rival]:
    """All of them, the default's form first."""
    forms = _Forms(window)
    types, gaps = (type_numbers, num_types), (gap_numbers, MOST_GAP)
    return {
        REFERENCE: forms.of(),
        "type": forms.reading(types),
        "gap": forms.reading(gaps),
        "type and gap": forms.reading(types, gaps),
        "gbce": forms.of(loss=_GBCE),
        "bce": forms.of(loss=_BCE),
        "cosine": forms.of(CosineModel),
        "gated": forms.of(GatedModel),
        "hstu": forms.of(HstuModel),
    }


def run(
    features: Path,
    *,
    window_size: int,
    epochs: float,
    num_users: int,
    num_seeds: int,
    protocol: Protocol | None,
    names: list[str] | None,
    out: Path | None,
) -> dict[str, Any]:
    """Train each rival on the same users for as many epochs and compare what they rank.

    Finished trainings are kept in `out`, if given, and taken from there. Without `names`, inputs that the log does not
    have are left out.

    Raises:
        ConfigError: an unknown name.
        DataError: nobody to validate on, a named input that the log does not have, or `out` is of other settings.
    """
    window = WindowConfig(size=window_size)
    chosen(rivals(window, 1), names, REFERENCE)
    of = sample(features, num_users, protocol=protocol)
    assert of.data is not None
    manifest = of.data.manifest
    kinds = list(manifest.metrics.get("event_types", [DEFAULT_EVENT_TYPE]))
    missing = _missing(of, kinds)
    absent = sorted(missing.keys() & set(names or ()))
    if absent:
        raise DataError(f"{features}: --only {absent[0]}: {missing[absent[0]]}")
    settings = {
        "features": manifest.digest,
        "protocol": of.data.protocol.value,
        "window": window.model_dump(mode="json"),
        "epochs": epochs,
        "num_users": len(of.split.contexts),
    }
    wanted = {
        name: rival
        for name, rival in chosen(rivals(window, len(kinds)), names, REFERENCE).items()
        if name not in missing
    }
    kept = KeptRuns(out, settings)
    codes = np.arange(len(kinds), dtype=np.uint8)
    rows = compare(wanted, of, window, epochs=epochs, num_seeds=num_seeds, reference=REFERENCE, kept=kept)
    return {
        **settings,
        "data": str(features),
        "num_events": len(of.split.train.tokens),
        "event_types": kinds,
        "wanted_types": [kinds[code] for code in np.flatnonzero(is_wanted(manifest, codes))],
        "num_seeds": num_seeds,
        "reference": REFERENCE,
        "left_out": missing,
        "rivals": rows,
    }


def _missing(of: Sample, kinds: list[str]) -> dict[str, str]:
    """Rivals that the log has no input for, and why."""
    assert of.data is not None
    missing: dict[str, str] = {}
    if len(kinds) < 2:
        missing |= dict.fromkeys(NEEDS_TYPES, f"all events are of one type, {', '.join(kinds)}")
    if of.data.manifest.metrics.get("split_ms") is None:
        missing |= dict.fromkeys(NEEDS_TIMES, "the log has no timestamps")
    return missing
