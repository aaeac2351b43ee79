"""What the default is made of: its form against others in what it reads, its loss, its output and its blocks.

All are trained alike: the same users, batches, epochs, seeds and item vectors to start from. What they rank is
compared on validation events: no test set is looked at.
"""

from pathlib import Path
from typing import Any

import numpy as np

from recsys.contracts.errors import DataError
from recsys.contracts.protocol import Protocol
from recsys.event_table import is_wanted
from recsys.model.binary_loss import BinaryLoss
from recsys.pipeline.forms import INPUTS, Forms, event_types, missing_inputs
from recsys.pipeline.kept_runs import KeptRuns
from recsys.pipeline.rivals import Rival, chosen, compare, sample
from recsys.windows import WindowConfig

REFERENCE = "default"
_GBCE = BinaryLoss(num_negatives=256, calibration=0.75, is_shared=True)
_BCE = BinaryLoss(num_negatives=1, calibration=0.0, is_shared=False)


def rivals(window: WindowConfig, num_types: int) -> dict[str, Rival]:
    """All of them, the default's form first."""
    form = Forms(window, num_types).of
    return {
        REFERENCE: form(),
        **{name: form(inputs=name) for name in INPUTS[1:]},
        "gbce": form(loss=_GBCE),
        "bce": form(loss=_BCE),
        "cosine": form(output="cosine"),
        "gated": form(blocks="gated"),
        "hstu": form(blocks="hstu"),
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
    kinds, missing = event_types(of), missing_inputs(of)
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
