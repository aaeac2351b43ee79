import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError


def write(place: Path, text: str = "hello", kind: str = "features") -> artifact.Manifest:
    with artifact.writing(place, kind) as writer:
        (writer.folder / "part").mkdir()
        (writer.folder / "part" / "a.txt").write_text(text)
        return writer.commit(parents={}, config={"x": 1}, metrics={})


def test_what_was_written_is_verified_and_names_every_file(tmp_path: Path) -> None:
    manifest = write(tmp_path / "out")
    assert artifact.verify(tmp_path / "out", "features") == manifest
    assert manifest.files["part/a.txt"].size_bytes == 5
    # sha256 of "hello", from the standard's test vectors
    assert manifest.files["part/a.txt"].sha256.startswith("2cf24dba5fb0a30e26e83b2ac5b9e29e")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_may_be_read_by_whom_the_folder_may(tmp_path: Path, umask: int, mode: int) -> None:
    """The endpoint is another user than the nightly job; some libraries write files that their owner alone may read."""
    before = os.umask(umask)
    try:
        with artifact.writing(tmp_path / "out", "features") as writer:
            (writer.folder / "a.txt").touch(mode=0o600)
            writer.commit(parents={}, config={}, metrics={})
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "a.txt").stat().st_mode & 0o777 == mode


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), artifact.writing(tmp_path / "out", "features") as writer:
        (writer.folder / "a.txt").write_text("half")
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_older_artifact(tmp_path: Path) -> None:
    old = write(tmp_path / "out")
    with pytest.raises(RuntimeError), artifact.writing(tmp_path / "out", "features"):
        raise RuntimeError
    assert artifact.verify(tmp_path / "out", "features") == old
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_artifact_replaces_the_old_one_whole(tmp_path: Path) -> None:
    write(tmp_path / "out")
    new = write(tmp_path / "out", "other")
    assert artifact.verify(tmp_path / "out", "features") == new
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOSYS])
def test_where_folders_cannot_be_exchanged_two_steps_replace_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    monkeypatch.setattr(artifact, "_exchange", lambda *_: answer)
    write(tmp_path / "out")
    new = write(tmp_path / "out", "other")
    assert artifact.verify(tmp_path / "out", "features") == new
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_step_that_fails_leaves_the_older_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write(tmp_path / "out")
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if ".writing-" in source.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(artifact, "_exchange", lambda *_: errno.EINVAL)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "out", "other")
    assert artifact.verify(tmp_path / "out", "features") == old
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_trouble_in_the_exchange_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write(tmp_path / "out")
    monkeypatch.setattr(artifact, "_exchange", lambda *_: errno.EACCES)
    with pytest.raises(ArtifactError, match="out: cannot be replaced: Permission denied; check the folder"):
        write(tmp_path / "out", "other")
    assert artifact.verify(tmp_path / "out", "features") == old


WRITING = """
import pathlib, sys
from recsys.contracts import artifact
with artifact.writing(pathlib.Path(sys.argv[1]), "features") as writer:
    (writer.folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_has_half_written_is_removed_by_the_next_and_of_a_live_one_nothing(tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(path.name.rpartition("-")[0] or path.name for path in tmp_path.iterdir())

    command = [sys.executable, "-c", WRITING, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "writing\n"
        write(tmp_path / "out")
        artifact.remove_leftovers(tmp_path)
        assert names() == [".out.writing", "out"]
        other.kill()
    write(tmp_path / "another")
    assert names() == [".out.writing", "another", "out"]  # each run removes what is of its own place
    write(tmp_path / "out")
    assert names() == ["another", "out"]
    for name in (".else.writing-0badcafe", ".notes.writing-tips"):
        (tmp_path / name).mkdir()
    artifact.remove_leftovers(tmp_path)
    assert names() == [".notes.writing", "another", "out"]


def test_what_a_run_left_that_died_between_the_steps_is_put_right(tmp_path: Path) -> None:
    place, older = tmp_path / "out", tmp_path / ".out.older"
    old = write(place)
    artifact.recover(place)  # nothing to do
    place.rename(older)
    artifact.recover(place)
    assert artifact.verify(place, "features") == old
    shutil.copytree(place, older)
    artifact.recover(place)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / ".notes.older").write_text("mine")
    artifact.recover(tmp_path / "notes")
    assert (tmp_path / ".notes.older").read_text() == "mine"


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ArtifactError, match="holds something else, will not be replaced by features"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()
    write(tmp_path / "checkpoint", kind="checkpoint")
    with pytest.raises(ArtifactError, match="holds checkpoint"):
        write(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["notes.txt", "log/day-1.csv", ".hidden", "part/b.txt"])
def test_a_file_that_is_no_part_of_the_artifact_is_never_removed(tmp_path: Path, name: str) -> None:
    old = write(tmp_path / "out")
    (tmp_path / "out" / "empty").mkdir()
    mine = tmp_path / "out" / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ArtifactError, match=f"no part of its features artifact and would be lost.*1, such as '{name}'"):
        write(tmp_path / "out", "other")
    mine.unlink()
    with pytest.raises(ArtifactError, match="would be lost"), artifact.writing(tmp_path / "out", "features") as writer:
        mine.write_text("put there while the run was at work")
        writer.commit(parents={}, config={}, metrics={})
    assert artifact.verify(tmp_path / "out", "features") == old
    mine.unlink()
    mine.symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="would be lost"):
        write(tmp_path / "out", "other")
    mine.unlink()
    write(tmp_path / "out", "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "part" / "a.txt").write_text("jello"), "sha256 187c9bceeb91 found, 2cf24dba5fb0 expected"),
        (lambda f: (f / "part" / "a.txt").write_text("hell"), "truncated or altered, 4 bytes found, 5 expected"),
        (lambda f: (f / "part" / "a.txt").unlink(), "file is missing"),
        (lambda f: (f / "manifest.json").unlink(), "no artifact here"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged manifest"),
        (lambda f: (f / "manifest.json").write_text("{}"), "damaged manifest"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage, message: str) -> None:
    write(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ArtifactError, match=message):
        artifact.verify(tmp_path / "out", "features")


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    fields["config"]["x"] = 2
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match="altered after it was written"):
        artifact.verify(tmp_path / "out", "features")


def test_another_kind_and_another_version_are_refused(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds features, expected checkpoint"):
        artifact.verify(tmp_path / "out", "checkpoint")
    monkeypatch.setattr(artifact, "FORMAT_VERSIONS", {"features": 3})
    with pytest.raises(ArtifactError, match="format version 2, this program reads 3"):
        artifact.verify(tmp_path / "out", "features")


def test_an_artifact_of_another_parent_is_refused_with_both_digests(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two", "other")
    with artifact.writing(tmp_path / "child", "checkpoint") as writer:
        child = writer.commit(parents={"features": one.digest}, config={}, metrics={})
    artifact.check_parent(child, "features", one, tmp_path / "child")
    with pytest.raises(ArtifactError, match=f"{one.digest[:12]}.*{two.digest[:12]}"):
        artifact.check_parent(child, "features", two, tmp_path / "child")


def test_current_points_to_a_release_and_nowhere_else(tmp_path: Path) -> None:
    assert artifact.current_name(tmp_path) is None
    with pytest.raises(ArtifactError, match="no release here"):
        artifact.resolve_release(tmp_path)
    artifact.set_current(tmp_path, "r1")
    artifact.set_current(tmp_path, "r2")
    assert artifact.resolve_release(tmp_path) == tmp_path / "r2"
    (tmp_path / "current").write_text("../../etc")
    with pytest.raises(ArtifactError, match="not a release name"):
        artifact.resolve_release(tmp_path)


def test_the_pointer_keeps_what_it_pointed_to_before_and_steps_back(tmp_path: Path) -> None:
    for name in ("r1", "r2", "r2", "r1", "r3"):
        artifact.set_current(tmp_path, name)
    names = artifact.current_names(tmp_path)
    assert names == ["r3", "r1", "r2", "r1"]
    artifact.step_back(tmp_path, names)
    assert artifact.current_names(tmp_path) == ["r1", "r2", "r1"]
    with pytest.raises(ArtifactError, match="was moved meanwhile"):
        artifact.step_back(tmp_path, names)
    assert artifact.current_name(tmp_path) == "r1"


def test_a_pointer_of_one_line_or_a_damaged_one_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "current").write_text("r1")  # as it was written before it kept names
    artifact.set_current(tmp_path, "r2")
    assert artifact.current_names(tmp_path) == ["r2", "r1"]
    (tmp_path / "current").write_text("")
    with pytest.raises(ArtifactError, match="not a release name"):
        artifact.current_names(tmp_path)
    artifact.set_current(tmp_path, "r3")
    assert artifact.current_names(tmp_path) == ["r3"]


def test_no_move_of_the_pointer_is_lost_among_many_at_once(tmp_path: Path) -> None:
    names = [f"r{n}" for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: artifact.set_current(tmp_path, name), names))
    assert sorted(artifact.current_names(tmp_path)) == sorted(names)


def test_a_pointer_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(ArtifactError, match=r"current: not written: Is a directory; check the folder"):
        artifact.set_current(tmp_path, "r1")
    with pytest.raises(ArtifactError, match="not written: No such file or directory"):
        artifact.set_current(tmp_path / "none", "r1")


def test_a_copied_artifact_still_verifies(tmp_path: Path) -> None:
    manifest = write(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert artifact.verify(tmp_path / "copy", "features") == manifest
