"""`recsys optimize check`: two engines of a release, or an engine and a reference of another machine."""

from pathlib import Path

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.precision import EngineName
from recsys.runtime.consistency import REFERENCE_FILE, Consistency, Reference, Tolerance, compare, random_windows
from recsys.runtime.release import Release


def run(
    path: Path,
    *,
    engine: EngineName | None,
    against: EngineName | None,
    reference: Path | None,
    save: Path | None,
    tolerance: Tolerance,
    num_threads: int,
) -> Consistency:
    """Compare an engine (default: the release's own) with another, a reference file, or the release's own reference.

    `save` writes what the engine answers, for another machine.

    Raises:
        ArtifactError: the reference is of another release.
        ConfigError: the release has no such engine, or this machine cannot run it.
    """
    if against is not None and reference is not None:
        raise ConfigError("give either --against ENGINE or --reference FILE")
    release = Release.open(path, num_threads=num_threads, engine=engine)
    digest = release.manifest.parents["checkpoint"]
    kept = release.vocabulary.num_kept
    windows = random_windows(release.vocabulary.num_events[: kept + 1], release.window.size)
    if save is not None:
        Reference.of(release.engine, release.index, windows, digest).save(save)
    if against is not None:
        other = Release.open(path, num_threads=num_threads, engine=against)
        known = Reference.of(other.engine, other.index, windows, digest)
    else:
        known = Reference.load(reference or release.folder / REFERENCE_FILE)
    if known.release != digest:
        raise ArtifactError(
            f"{reference}: answers of a release of checkpoint {known.release[:12]}, this one is of {digest[:12]}; "
            "compare answers of the same release"
        )
    return compare(known, release.engine, release.index, tolerance)


def picture(found: Consistency, path: Path) -> None:
    """Error and agreement by history length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
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
    for axes in (left, right):
        axes.legend(fontsize="small")
    figure.suptitle(f"{found.engine} against {found.against}: {'agrees' if found.agrees else 'differs'}")
    figure.savefig(path, dpi=120)
