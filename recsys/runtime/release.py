"""A release: engine, item index and vocabulary of one checkpoint, bound by one manifest."""

from dataclasses import dataclass
from pathlib import Path

from recsys.contracts import artifact, packing
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ids import Vocabulary
from recsys.contracts.precision import EngineName
from recsys.runtime.engine import Engine
from recsys.runtime.engines import Parts, open_engine
from recsys.runtime.fusion import Fusion
from recsys.runtime.index import IndexChoice, ItemIndex
from recsys.runtime.items import ItemTable
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

    @classmethod
    def open(cls, path: Path, *, num_threads: int = 2, engine: EngineName | None = None) -> "Release":
        """Load and check the release at `path`, or the current one of a folder of releases.

        `engine` is another one than the release is meant to be served with.

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
        parts = Parts(folder=folder, items=items, config=manifest.config, num_threads=num_threads)
        opened = open_engine(engine or EngineName(manifest.config["engine"]), parts)
        choice = manifest.metrics.get("index", {}).get("choice", {})  # releases of before had one kind
        index = ItemIndex.open(folder, items, IndexChoice.from_mapping(choice, f"{folder}: index"))
        transitions = TransitionTable.load(folder)
        sizes = {len(vocabulary), len(index), transitions.num_items}
        if len(sizes) != 1 or index.width != opened.info.width:
            raise ArtifactError(
                f"{folder}: index of {len(index)} items of width {index.width}, vocabulary of {len(vocabulary)}, "
                f"transitions of {transitions.num_items}, engine of width {opened.info.width}; "
                "run `recsys optimize` again"
            )
        fusion = Fusion.from_mapping(manifest.config["fusion"], f"{folder}: fusion")
        return cls(folder.name, folder, manifest, vocabulary, window, fusion, transitions, opened, index)
