"""At 3 a.m.: a killed run, a second run, a full disk. The shop keeps yesterday's artifact or gets tonight's."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from features import forget, report
from features.build import FeaturesConfig, run
from features.lock import locked
from recsys import dataset
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, DataError, LockedError
from recsys.contracts.protocol import Protocol
from tests.features.test_incremental import HEADER, NOW_MS, S, digest_from_the_files, digest_of

CONFIG = FeaturesConfig(min_count=1, events_per_partition=200)
CHILD = f"""
import sys
from pathlib import Path
from features import spill
from features.build import FeaturesConfig, run
spill.MAX_BYTES_IN_MEMORY = 0  # so that there are files in the way
print("ready", flush=True)
sys.stdin.readline()
run(FeaturesConfig(min_count=1, events_per_partition=200), [Path(sys.argv[1])], Path(sys.argv[2]), now_ms={NOW_MS})
print("done", flush=True)
"""


def add_day(log: Path, day: int) -> None:
    log.mkdir(exist_ok=True)
    lines = [f"u{n % 37},i{(n * day) % 29},{S + day * 86_400 + n},view,,\n" for n in range(300)]
    (log / f"day-{day:03d}.csv").write_text(HEADER + "".join(lines))


def killed_after(seconds: float, log: Path, out: Path) -> bool:
    """Run the job in a process of its own and kill it so long after it began; whether it ended before that."""
    command = [sys.executable, "-c", CHILD, str(log), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("\n")
        child.stdin.flush()
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        return child.stdout.readline() == "done\n"


def check_killed_runs(place: Path, num_kills: int) -> None:
    log, out = place / "log", place / "out"
    generator = random.Random(1)
    add_day(log, day := 1)
    possible = {digest_of(run(CONFIG, [log], out, now_ms=NOW_MS))}
    num_ended = 0
    for kill in range(num_kills):
        if len(possible) == 1:
            day += 1
            add_day(log, day)
            possible.add(digest_of(run(CONFIG, [log], place / f"rebuilt-{day}", now_ms=NOW_MS)))
        num_ended += killed_after(generator.uniform(0, 0.35), log, out)
        assert digest_of(artifact.verify(out, "features")) in possible
        dataset.load(out, Protocol.FINAL)
        if kill % 4 == 3:
            run(CONFIG, [log], out, now_ms=NOW_MS)
            possible = {digest_of(artifact.verify(out, "features"))}
    last = run(CONFIG, [log], out, now_ms=NOW_MS)
    assert digest_of(last) == digest_of(run(CONFIG, [log], place / "all", now_ms=NOW_MS)) == digest_from_the_files(out)
    assert num_ended < num_kills
    hidden = [p.name for p in place.iterdir() if p.name.startswith(".")]
    assert hidden == []


def test_a_killed_run_leaves_one_whole_artifact(tmp_path: Path) -> None:
    check_killed_runs(tmp_path, 4)


@pytest.mark.slow
def test_fifty_killed_runs_leave_one_whole_artifact_each_time(tmp_path: Path) -> None:
    check_killed_runs(tmp_path, 60)


def test_a_first_build_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    add_day(tmp_path / "log", 1)
    (tmp_path / ".out.writing-0badcafe").mkdir()
    (tmp_path / ".out.scratch").mkdir()
    (tmp_path / ".out.lock").write_text("process 99999999 since 2026-01-01T03:00:00+00:00")
    manifest = run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert manifest.metrics["died_before"].startswith("process 99999999 since 2026-01-01T03:00:00+00:00 ended without")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "out"]


def test_a_run_killed_between_two_steps_of_replacing_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "_exchange", lambda *_: errno.EINVAL)
    log, out = tmp_path / "log", tmp_path / "out"
    for day in (1, 2, 3):
        add_day(log, day)
        manifest = run(CONFIG, [log], out, now_ms=NOW_MS)
        assert manifest.metrics["why_full"] == ("first build" if day == 1 else None)
        out.rename(tmp_path / ".out.older")  # the night after finds this
    forget.run([out], _who(tmp_path, "u3"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "out", "who.txt"]
    shutil.copytree(out, tmp_path / ".out.older")  # died before it was removed
    forget.run([tmp_path], _who(tmp_path, "u4"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "out", "who.txt"]
    assert artifact.verify(out, "features").metrics["num_forgotten"] == 2
    assert digest_from_the_files(out) == digest_of(artifact.read_manifest(out))


def _who(place: Path, user: str) -> Path:
    (place / "who.txt").write_text(f"{user}\n")
    return place / "who.txt"


def test_a_link_stays_and_what_it_leads_to_is_exchanged(tmp_path: Path) -> None:
    log, link, real = tmp_path / "log", tmp_path / "out", tmp_path / "disk" / "features"
    link.symlink_to(real)  # nothing there yet
    for day in (1, 2):
        add_day(log, day)
        run(CONFIG, [log], link, now_ms=NOW_MS)
    removed = forget.run([tmp_path], _who(tmp_path, "u3"))
    assert list(removed.removed) == [str(real)]
    assert forget.from_artifact(link, ["u4"]) > 0
    assert artifact.verify(real, "features").metrics["num_forgotten"] == 2
    assert link.readlink() == real
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "log", "out", "who.txt"]
    assert [p.name for p in real.parent.iterdir()] == ["features"]


@pytest.mark.parametrize("there_before", [True, False])
def test_a_log_in_the_folder_of_the_artifact_is_refused_and_stays(tmp_path: Path, there_before: bool) -> None:
    log, out, inside = tmp_path / "log", tmp_path / "out", tmp_path / "out" / "log"
    add_day(log, 1)
    if there_before:
        run(CONFIG, [log], out, now_ms=NOW_MS)
    out.mkdir(exist_ok=True)
    add_day(inside, 2)
    (tmp_path / "link").symlink_to(out)
    for source, place in ((inside, out), (inside / "day-002.csv", out), (tmp_path / "link" / "log", tmp_path / "link")):
        with pytest.raises(DataError, match="lies in the folder of the artifact"):
            run(CONFIG, [log, source], place, now_ms=NOW_MS)
    with pytest.raises(ArtifactError, match="would be lost" if there_before else "holds something else"):
        run(CONFIG, [log], out, full=True, now_ms=NOW_MS)
    assert (inside / "day-002.csv").exists()


def test_a_second_run_is_told_who_is_at_work(tmp_path: Path) -> None:
    add_day(tmp_path / "log", 1)
    with locked(tmp_path / "out"), pytest.raises(LockedError, match=f"another run is at work .process {os.getpid()}"):
        run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert LockedError.exit_code == 4
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_error_at_the_end_does_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    add_day(tmp_path / "log", 1)
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    add_day(tmp_path / "log", 2)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(report, "write", full)
    with pytest.raises(DataError, match="the disk is full; the artifact is as it was"):
        run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_small_disk_that_fills_up_does_no_damage(tmp_path: Path, small_disk: Path) -> None:
    add_day(tmp_path / "log", 1)
    run(CONFIG, [tmp_path / "log"], small_disk / "out", now_ms=NOW_MS)
    lines = [f"someone{n * 7919 % 99_991},i{n % 9},{S + n},view,,\n" for n in range(60_000)]
    (tmp_path / "log" / "day-002.csv").write_text(HEADER + "".join(lines))
    with pytest.raises(DataError, match="the disk is full; the artifact is as it was"):
        run(CONFIG, [tmp_path / "log"], small_disk / "out", now_ms=NOW_MS)
    assert artifact.verify(small_disk / "out", "features").metrics["num_events"] == 300
    assert [p.name for p in small_disk.iterdir()] == ["out"]


def fill(place: Path) -> None:
    """Until there is no space left on the disk."""
    with suppress(OSError), place.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_is_full_already_is_said(tmp_path: Path, small_disk: Path) -> None:
    add_day(tmp_path / "log", 1)
    run(CONFIG, [tmp_path / "log"], small_disk / "out", now_ms=NOW_MS)
    fill(small_disk / "full")
    said = "disk/out: the disk is full; the artifact is as it was, free some space"
    with pytest.raises(DataError, match=said):
        run(CONFIG, [tmp_path / "log"], small_disk / "out", now_ms=NOW_MS)
    with pytest.raises(DataError, match=said):
        forget.run([small_disk / "out"], _who(tmp_path, "u3"))
    assert sorted(p.name for p in small_disk.iterdir()) == ["full", "out"]


def test_a_disk_that_a_dead_run_has_filled_is_no_trouble(tmp_path: Path, small_disk: Path) -> None:
    add_day(tmp_path / "log", 1)
    run(CONFIG, [tmp_path / "log"], small_disk / "out", now_ms=NOW_MS)
    (small_disk / ".out.writing-0badcafe").mkdir()
    fill(small_disk / ".out.writing-0badcafe" / "half")
    add_day(tmp_path / "log", 2)
    run(CONFIG, [tmp_path / "log"], small_disk / "out", now_ms=NOW_MS)
    assert [p.name for p in small_disk.iterdir()] == ["out"]
