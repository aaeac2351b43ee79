"""Do two engines, or two machines, answer alike? The same windows through both, by stated tolerance.

A reference is what one engine made of some windows: a file that travels. A release holds its own, made by the
engine that passed the gate; the endpoint compares itself with it before it is ready. Its windows are drawn at
random by popularity: no user's history travels with a release.

By layer (`recsys/runtime/layers.py`) only where the reference holds keys and values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field

from recsys.contracts.config import Config
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import PAD, Floats, Tokens
from recsys.runtime import layers
from recsys.runtime.engine import Engine, Session
from recsys.runtime.index import ItemIndex
from recsys.runtime.layers import LayerRow
from recsys.windows import WindowConfig

# N windows, D width, K items of a list

REFERENCE_FILE = "reference.safetensors"
DEPTH = 100
_WINDOWS_PER_LENGTH = 2
APPENDED = 3
"""Last events of a window that are appended to a session of the others."""


class Tolerance(Config):
    """How far answers may be apart and still count as the same."""

    max_relative_error: float = Field(default=0.03, gt=0)
    """Of any user vector, encoded whole or appended to: more than bf16 arithmetic and a float16 cache cost."""
    min_top10_overlap: float = Field(default=0.9, ge=0, le=1)
    """Mean share of the reference's ten best items."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What an engine made of some windows."""

    engine: str
    release: str
    """Digest of the checkpoint: which release the windows' tokens belong to."""
    windows: tuple[Tokens, ...]
    vectors_ND: Floats
    top_NK: Tokens
    """Best items by the user vector alone, PAD where fewer exist."""
    kept: tuple[Floats, ...] | None = None
    """Keys and values of each window, if layers are to be compared: `Engine.kept`."""

    @classmethod
    def of(
        cls, engine: Engine, index: ItemIndex, windows: Sequence[Tokens], release: str, *, by_layer: bool = False
    ) -> Self:
        """The engine's answers now; `by_layer` also what it keeps of each window, which is large."""
        vectors_ND = engine.encode(windows)
        top_NK = index.search(vectors_ND, DEPTH)[0]
        kept = tuple(engine.kept(session) for session in engine.open(windows)) if by_layer else None
        return cls(engine.info.name, release, tuple(windows), vectors_ND, top_NK, kept)

    def save(self, path: Path) -> None:
        """Write one file."""
        arrays = {
            "tokens": np.concatenate(self.windows).astype(np.int32),
            "lengths": np.array([len(window) for window in self.windows], dtype=np.int32),
            "vectors": self.vectors_ND,
            "top": self.top_NK.astype(np.int32),
        }
        if self.kept is not None:
            arrays["kept"] = np.concatenate(self.kept)
        safetensors.numpy.save_file(arrays, path, {"engine": self.engine, "release": self.release})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ArtifactError: not such a file.
        """
        try:
            with safetensors.safe_open(path, "numpy") as file:
                said = file.metadata() or {}
                names = ["tokens", "lengths", "vectors", "top", *({"kept"} & set(file.keys()))]
                arrays = {name: file.get_tensor(name) for name in names}
                engine, release = said["engine"], said["release"]
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise ArtifactError(
                f"{path}: not a reference: {error}; write one with `recsys optimize check RELEASE --save FILE`"
            ) from None
        ends = np.cumsum(arrays["lengths"])[:-1]
        windows = tuple(np.split(arrays["tokens"], ends))
        kept = tuple(np.split(arrays["kept"], ends)) if "kept" in arrays else None
        return cls(engine, release, windows, arrays["vectors"], arrays["top"], kept)


class LengthRow(BaseModel):
    """Windows of one length."""

    model_config = ConfigDict(frozen=True)
    length: int
    num_windows: int
    error: float
    """Largest relative error of a user vector (L2)."""
    appended_error: float | None
    """The same after the last events were appended to a session; None for windows of one event."""
    top10_overlap: float
    top100_overlap: float


class Consistency(BaseModel):
    """Two engines on the same windows."""

    model_config = ConfigDict(frozen=True)
    engine: str
    against: str
    by_length: list[LengthRow]
    by_layer: list[LayerRow]
    """None unless the reference holds keys and values."""
    max_relative_error: float
    top10_overlap: float
    top100_overlap: float
    tolerance: Tolerance
    problems: list[str]
    """What is beyond the tolerance; none if they agree."""

    @property
    def agrees(self) -> bool:
        """The verdict."""
        return not self.problems


def random_windows(num_events_V: Any, window: WindowConfig, seed: int = 0) -> list[Tokens]:
    """Windows of 1, 2, 4, … events and of full size, and with summaries contexts that are as long as they may be.

    `num_events_V` weighs the tokens, entry PAD first.
    """
    generator = np.random.default_rng(seed)
    weights = np.asarray(num_events_V, dtype=np.float64)[1:] + 1
    lengths = [*(2**i for i in range(window.size.bit_length()) if 2**i < window.size), window.size]
    lengths += [window.longest_context] if window.summary_tokens else []
    return [
        (generator.choice(len(weights), length, p=weights / weights.sum()) + 1).astype(np.int32)
        for length in lengths
        for _ in range(_WINDOWS_PER_LENGTH)
    ]


def compare(reference: Reference, engine: Engine, index: ItemIndex, tolerance: Tolerance) -> Consistency:
    """The engine's answers now against the reference's."""
    windows = list(reference.windows)
    now = Reference.of(engine, index, windows, reference.release, by_layer=reference.kept is not None)
    lengths_N = np.array([len(window) for window in windows])
    error_N = _errors(reference.vectors_ND, now.vectors_ND)
    appended = sessions_after_appends(reference.windows, engine)
    appended_N = _appended_errors(reference, appended)
    overlaps = {depth: _overlaps(reference.top_NK[:, :depth], now.top_NK[:, :depth]) for depth in (10, DEPTH)}
    rows = []
    for length in np.unique(lengths_N).tolist():
        chosen = lengths_N == length
        rows.append(
            LengthRow(
                length=length,
                num_windows=int(chosen.sum()),
                error=float(error_N[chosen].max()),
                appended_error=float(appended_N[chosen].max()) if length > 1 else None,
                top10_overlap=float(overlaps[10][chosen].mean()),
                top100_overlap=float(overlaps[DEPTH][chosen].mean()),
            )
        )
    worst = float(np.max(np.concatenate([error_N, appended_N[lengths_N > 1]])))
    top10 = float(overlaps[10].mean())
    return Consistency(
        engine=engine.info.name,
        against=reference.engine,
        by_length=rows,
        by_layer=_by_layer(reference, now, appended, engine),
        max_relative_error=worst,
        top10_overlap=top10,
        top100_overlap=float(overlaps[DEPTH].mean()),
        tolerance=tolerance,
        problems=_problems(worst, top10, tolerance),
    )


def check_release(folder: Path, engine: Engine, index: ItemIndex) -> None:
    """The short form: the release's engine, on this machine, against the reference that the release holds.

    Raises:
        ArtifactError: it answers otherwise than when the release was built.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():  # a release of before
        return
    found = compare(Reference.load(path), engine, index, Tolerance())
    if not found.agrees:
        raise ArtifactError(
            f"{folder}: {found.engine} does not answer here as {found.against} did when the release was built: "
            f"{'; '.join(found.problems)}; run `recsys optimize check {folder}`"
        )


def _problems(worst: float, top10: float, tolerance: Tolerance) -> list[str]:
    problems = []
    if not worst <= tolerance.max_relative_error:  # true for nan
        problems.append(f"relative error {worst:.3g}, at most {tolerance.max_relative_error:g} allowed")
    if not top10 >= tolerance.min_top10_overlap:
        problems.append(f"top-10 overlap {top10:.3f}, at least {tolerance.min_top10_overlap:g} expected")
    return problems


def sessions_after_appends(windows: Sequence[Tokens], engine: Engine) -> dict[int, Session]:
    """By place: the window's session, its last few events appended. Windows of one event have none.

    Of contexts longer than a window those events must all be new in the last window.
    """
    chosen = [i for i, window in enumerate(windows) if len(window) > 1]
    pairs = [np.split(windows[i], [_cut(windows[i])]) for i in chosen]
    sessions = engine.append(engine.open([first for first, _ in pairs]), [last for _, last in pairs])
    return dict(zip(chosen, sessions, strict=True))


def _cut(window: Tokens) -> int:
    """Where the events begin that are appended."""
    return max(1, len(window) - APPENDED)


def _appended_errors(reference: Reference, appended: Mapping[int, Session]) -> Floats:
    """Relative error after appends; 0 for windows of one event."""
    errors_N = np.zeros(len(reference.windows), dtype=np.float32)
    for i, session in appended.items():
        errors_N[i] = _errors(reference.vectors_ND[i][None], session.vector_D[None])[0]
    return errors_N


def _by_layer(reference: Reference, now: Reference, appended: Mapping[int, Session], engine: Engine) -> list[LayerRow]:
    if reference.kept is None or now.kept is None:
        return []
    cuts = {i: _cut(reference.windows[i]) for i in appended}
    last = [(reference.kept[i][cuts[i] :], engine.kept(appended[i])[cuts[i] :]) for i in appended]
    return layers.rows(list(zip(reference.kept, now.kept, strict=True)), last)


def _errors(expected_ND: Floats, found_ND: Floats) -> Floats:
    errors: Floats = np.linalg.norm(found_ND - expected_ND, axis=1) / np.linalg.norm(expected_ND, axis=1)
    return errors


def _overlaps(expected_NK: Tokens, found_NK: Tokens) -> Floats:
    shares = [
        len(np.intersect1d(ours[ours != PAD], theirs)) / max(1, int((ours != PAD).sum()))
        for ours, theirs in zip(expected_NK, found_NK, strict=True)
    ]
    return np.array(shares, dtype=np.float32)
