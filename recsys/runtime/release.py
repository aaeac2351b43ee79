"""A release: engine, item index and vocabulary of one checkpoint, bound by one manifest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys import trend
from recsys.contracts import artifact, packing
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import Floats, Vocabulary
from recsys.contracts.precision import EngineName
from recsys.runtime.engine import Engine
from recsys.runtime.engines import Parts, open_engine
from recsys.runtime.fusion import Fusion
from recsys.runtime.index import IndexChoice, ItemIndex
from recsys.runtime.items import ItemTable
from recsys.runtime.new_items import NewItems
from recsys.runtime.stored_summaries import StoredSummaries
from recsys.transitions import TransitionTable
from recsys.windows import WindowConfig

VOCABULARY_PARENT = "vocabulary"


@dataclass(frozen=True, slots=True)
class Release:
    """Everything an answer needs."""

    name: str
    folder: Path
    manifest: artifact.Manifest
    vocabulary: Vocabulary
    window: WindowConfig
    fusion: Fusion
    transitions: TransitionTable
    engine: Engine
    index: ItemIndex
    temperature: float = 1.0
    """Scores over it are log-odds: found on validation, 1 in releases of before."""
    history_types: tuple[str, ...] = ()
    """Event types that histories are made of, in training too; empty: all."""

    @classmethod
    def open(
        cls, path: Path, *, num_threads: int = 2, engine: EngineName | None = None, device: str | None = None
    ) -> "Release":
        """Load and check the release at `path`, or the current one of a folder of releases.

        `engine` is another one than the release is meant to be served with, `device` another one for torch.

        Raises:
            ArtifactError: damaged, or its parts belong to different checkpoints.
            ConfigError: it has no such engine, or this machine cannot run it.
        """
        folder = artifact.resolve_release(path)
        manifest = artifact.verify(folder, "release")
        found = manifest.files[packing.found(folder / Vocabulary.FILE_NAME).name].sha256
        expected = manifest.parents[VOCABULARY_PARENT]
        if found != expected:
            raise ArtifactError(
                f"{folder}: vocabulary {found[:12]}, engine and index made for {expected[:12]}; "
                "run `recsys optimize` again"
            )
        vocabulary = Vocabulary.load(folder)
        window = WindowConfig.from_mapping(manifest.config["window"], f"{folder}: window")
        items = ItemTable.load(folder)
        parts = Parts(
            folder=folder,
            items=items,
            config=manifest.config,
            num_threads=num_threads,
            device=device,
            stored=StoredSummaries.open(folder),
        )
        opened = open_engine(engine or EngineName(manifest.config["engine"]), parts)
        fusion = Fusion.from_mapping(manifest.config["fusion"], f"{folder}: fusion")
        choice = manifest.metrics.get("index", {}).get("choice", {})  # releases of before had one kind
        new = NewItems.from_mapping(manifest.config.get("new_items", {}), f"{folder}: new_items")
        index = ItemIndex.open(
            folder, items, IndexChoice.from_mapping(choice, f"{folder}: index"), shifts(vocabulary, new, fusion)
        )
        transitions = TransitionTable.load(folder)
        fits = len(vocabulary) == len(index) and vocabulary.num_kept == transitions.num_items
        if not fits or index.width != opened.info.width:
            raise ArtifactError(
                f"{folder}: index of {len(index)} items of width {index.width}, vocabulary of {len(vocabulary)} "
                f"({vocabulary.num_kept} kept), transitions of {transitions.num_items}, "
                f"engine of width {opened.info.width}; run `recsys optimize` again"
            )
        temperature = float(manifest.config.get("temperature", 1.0))
        history_types = tuple(manifest.config.get("history_types", ()))
        return cls(
            folder.name,
            folder,
            manifest,
            vocabulary,
            window,
            fusion,
            transitions,
            opened,
            index,
            temperature,
            history_types,
        )


def shifts(vocabulary: Vocabulary, new: NewItems, fusion: Fusion) -> Floats | None:
    """What is added to each item's score: a kept one's trend, a new one's shift; None where there is neither."""
    of_trend = trend.shifts(fusion.trend, vocabulary.num_recent[: vocabulary.num_kept + 1])
    if of_trend is None and vocabulary.num_kept == len(vocabulary):
        return None
    of_kept = np.zeros(vocabulary.num_kept, dtype=np.float32) if of_trend is None else of_trend
    of_new = np.full(len(vocabulary) - vocabulary.num_kept, new.shift, dtype=np.float32)
    return np.concatenate([of_kept, of_new])
