"""`recsys optimize check`: two engines of a release, or an engine and a reference of another machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.precision import EngineName, ItemFormat
from recsys.runtime.consistency import REFERENCE_FILE, Consistency, Reference, Tolerance, compare, random_windows
from recsys.runtime.engine import Engine
from recsys.runtime.items import ItemTable
from recsys.runtime.layers import in_units_of
from recsys.runtime.reference import REFERENCE_NAME, ReferenceEngine
from recsys.runtime.release import Release
from recsys.runtime.summaries import Summaries, SummaryEngine, SummaryWeights


def run(
    path: Path,
    *,
    engine: EngineName | None,
    device: str | None,
    against: EngineName | None,
    checkpoint: Path | None,
    reference: Path | None,
    save: Path | None,
    by_layer: bool,
    tolerance: Tolerance,
    num_threads: int,
) -> Consistency:
    """Compare an engine (default: the release's own) with another, with the float32 model, or with a reference file.

    Without any of these, with the release's own reference. `save` writes what the engine answers, for another
    machine. `by_layer` compares keys and values too, and puts them into what is saved.

    Raises:
        ArtifactError: the checkpoint or the reference is of another release, or holds no keys and values.
        ConfigError: the release has no such engine, or this machine cannot run it.
    """
    if sum(other is not None for other in (against, checkpoint, reference)) > 1:
        raise ConfigError("give one of --against ENGINE, --checkpoint DIR and --reference FILE")
    release = Release.open(path, num_threads=num_threads, engine=engine, device=device)
    digest = release.manifest.parents["checkpoint"]
    kept = release.vocabulary.num_kept
    windows = random_windows(release.vocabulary.num_events[: kept + 1], release.window)
    if by_layer:  # keys and values are kept of one window
        windows = [window for window in windows if len(window) <= release.window.size]
    if save is not None:
        Reference.of(release.engine, release.index, windows, digest, by_layer=by_layer).save(save)
    if against is not None or checkpoint is not None:
        other = (
            _float32(checkpoint, release, num_threads)
            if checkpoint is not None
            else Release.open(path, num_threads=num_threads, engine=against, device=device).engine
        )
        known = Reference.of(other, release.index, windows, digest, by_layer=by_layer)
        if known.kept is not None and REFERENCE_NAME in (other.info.name, release.engine.info.name):
            found = [release.engine.kept(session) for session in release.engine.open(windows)]
            known = replace(known, kept=in_units_of(found, known.kept))
    else:
        file = reference or release.folder / REFERENCE_FILE
        known = Reference.load(file)
        if by_layer and known.kept is None:
            raise ArtifactError(
                f"{file}: holds no keys and values, which --layers compares; give --against ENGINE, --checkpoint DIR, "
                "or a --reference FILE that was written by --save FILE --layers"
            )
        if known.release != digest:
            raise ArtifactError(
                f"{file}: answers of a release of checkpoint {known.release[:12]}, this one is of {digest[:12]}; "
                "compare answers of the same release"
            )
    return compare(known, release.engine, release.index, tolerance)


def _float32(folder: Path, release: Release, num_threads: int) -> Engine:
    """The model that the release was made from, before anything was rounded.

    Raises:
        ArtifactError: the release was made from another one.
    """
    import torch

    from recsys.model.checkpoint import Checkpoint
    from recsys.model.summaries import SummaryModel

    torch.set_num_threads(num_threads)
    checkpoint = Checkpoint.open(folder)
    artifact.check_parent(release.manifest, "checkpoint", checkpoint.manifest, release.folder)
    items = ItemTable.of(checkpoint.model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)
    model = checkpoint.model
    engine = ReferenceEngine(model, items, window_size=release.window.most_rows)
    if not isinstance(model, SummaryModel):
        return engine
    return SummaryEngine(engine, items, SummaryWeights(*model.weights()), release.window, Summaries())


def picture(found: Consistency, path: Path) -> None:
    """Error and agreement by history length, and error by layer if it was asked for."""
    from matplotlib.figure import Figure

    num_parts = 3 if found.by_layer else 2
    figure = Figure(figsize=(4.5 * num_parts, 3.4), layout="constrained")
    left, right, *rest = figure.subplots(1, num_parts)
    lengths = [row.length for row in found.by_length]
    left.plot(lengths, [row.error for row in found.by_length], "o-", label="encoded whole")
    appended = [(row.length, row.appended_error) for row in found.by_length if row.appended_error is not None]
    left.plot(*zip(*appended, strict=True), "s--", label="last events appended")
    left.axhline(found.tolerance.max_relative_error, color="tab:red", linewidth=1, label="allowed")
    left.set(xscale="log", yscale="log", xlabel="events of the window", ylabel="largest relative error")
    right.plot(lengths, [row.top10_overlap for row in found.by_length], "o-", label="top 10")
    right.plot(lengths, [row.top100_overlap for row in found.by_length], "s--", label="top 100")
    right.axhline(found.tolerance.min_top10_overlap, color="tab:red", linewidth=1, label="needed of the top 10")
    right.set(xscale="log", ylim=(0, 1.05), xlabel="events of the window", ylabel="overlap of lists")
    for axes in rest:
        _draw_layers(found, axes)
    for axes in (left, right, *rest):
        axes.legend(fontsize="small")
    figure.suptitle(f"{found.engine} against {found.against}: {'agrees' if found.agrees else 'differs'}")
    figure.savefig(path, dpi=120)


def _draw_layers(found: Consistency, axes: Any) -> None:
    """Keys and values by layer, encoded whole and appended."""
    places = [row.layer for row in found.by_layer]
    for name, style in (("keys", "o-"), ("values", "s-"), ("appended_keys", "o--"), ("appended_values", "s--")):
        axes.plot(places, [getattr(row, name) for row in found.by_layer], style, label=name.replace("_", " "))
    axes.axhline(found.max_relative_error, color="tab:gray", linewidth=1, label="user vector")
    axes.set(yscale="log", xlabel="layer", xticks=places, ylabel="largest relative error")
