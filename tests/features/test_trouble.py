"""A damaged artifact and missing permissions: one line that says what mends it, and nothing half done."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from features import forget
from features.build import run
from recsys.contracts import artifact
from recsys.contracts.errors import DamagedError, DataError, RecsysError, RefusedError
from tests.features.test_crash import CONFIG, add_day
from tests.features.test_incremental import NOW_MS, digest_from_the_files, digest_of


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A log of three days, and the artifact of the first two."""
    for day in (1, 2):
        add_day(tmp_path / "log", day)
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    add_day(tmp_path / "log", 3)
    return tmp_path


def flip(file: Path, share: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * share)] ^= 0xFF
    file.write_bytes(data)


def each_history(damage: Callable[[Path], object]) -> Callable[[Path], None]:
    def all_of(histories: Path) -> None:
        for file in histories.rglob("*.parquet"):
            damage(file)

    return all_of


def last_history_gone(histories: Path) -> None:
    max(histories.rglob("*.parquet")).unlink()


FULL, RENUMBER = (
    "put it back from a copy, or build the artifact again with --full$",
    "put it back from a copy, or number them anew with --renumber$",
)
DAMAGE = {
    "items emptied": ("items.parquet", lambda file: file.write_bytes(b""), f"0 bytes found.*{RENUMBER}"),
    "items altered": ("items.parquet", flip, f"altered, sha256.*{RENUMBER}"),
    "items gone": ("items.parquet", Path.unlink, f"file is missing.*{RENUMBER}"),
    "users gone": ("users.parquet", Path.unlink, f"file is missing; {FULL}"),
    "users altered": ("users.parquet", flip, f"altered, sha256.*{FULL}"),
    "days cut": ("days.parquet", lambda file: os.truncate(file, 9), f"truncated or altered, 9 bytes.*{FULL}"),
    "quarantine gone": ("quarantine.csv", Path.unlink, f"file is missing; {FULL}"),
    "histories altered": ("histories", each_history(flip), f"part-.*altered, sha256.*{FULL}"),
    "histories cut": ("histories", each_history(lambda file: os.truncate(file, 9)), f"part-.*9 bytes.*{FULL}"),
    "a history gone": ("histories", last_history_gone, f"part-.*: file is missing; {FULL}"),
    "all histories gone": ("histories", shutil.rmtree, f"part-.*: file is missing; {FULL}"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_artifact_is_said_and_can_be_mended(
    shop: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    numbers = artifact.read_manifest(shop / "out").metrics["event_types"]
    damage(shop / "out" / name)
    (shop / "who.txt").write_text("u3\n")
    for work in (
        lambda: run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS),
        lambda: forget.run([shop / "out"], shop / "who.txt"),
    ):
        with pytest.raises(DamagedError, match=f"out/{name}.*{message}") as caught:
            work()
        assert "\n" not in str(caught.value)
    if name == "items.parquet":
        with pytest.raises(DamagedError, match=message):
            run(CONFIG, [shop / "log"], shop / "out", full=True, now_ms=NOW_MS)
    mended = run(CONFIG, [shop / "log"], shop / "out", full=True, renumber=name == "items.parquet", now_ms=NOW_MS)
    assert mended.metrics["event_types"] == numbers
    assert digest_from_the_files(shop / "out") == digest_of(mended)
    assert sorted(path.name for path in shop.iterdir()) == ["log", "out", "who.txt"]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_damaged_histories_are_not_merged_into_sound_ones(tmp_path: Path, share: float) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    add_day(log, 1)
    run(CONFIG, [log], out, now_ms=NOW_MS)
    (tmp_path / "who.txt").write_text("".join(f"u{n}\n" for n in range(37)))
    for file in (out / "histories").rglob("*.parquet"):
        flip(file, share)  # mostly another value, which no reader of Parquet notices
    with pytest.raises(DamagedError, match=r"part-.*altered, sha256"):
        forget.run([out], tmp_path / "who.txt")
    add_day(log, 2)
    with pytest.raises(DamagedError, match=r"part-.*altered, sha256"):
        run(CONFIG, [log], out, now_ms=NOW_MS)


@pytest.mark.parametrize("damage", [Path.unlink, flip, lambda file: file.write_text("{}")])
def test_a_damaged_manifest_says_how_to_begin_anew(shop: Path, damage: Callable[[Path], object]) -> None:
    forget.from_artifact(shop / "out", ["u3"])
    damage(shop / "out" / "manifest.json")
    out = shop / "out"
    for full in (False, True):
        with pytest.raises(DamagedError, match=r"manifest.json: .*`cp .*, and run again$") as caught:
            run(CONFIG, [shop / "log"], out, full=full, now_ms=NOW_MS)
    assert os.system(str(caught.value).split("`")[1]) == 0
    assert run(CONFIG, [shop / "log"], out, now_ms=NOW_MS).metrics["num_forgotten"] == 1


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of somebody who is not root, with a log of two days, and the artifact of the first."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        add_day(place / "log", 1)
        run(CONFIG, [place / "log"], place / "out", now_ms=NOW_MS)
        add_day(place / "log", 2)
        user = os.geteuid()
        if user == 0:
            for path in (place, *place.rglob("*")):
                os.chown(path, 65_534, -1)
            os.seteuid(65_534)
        try:
            yield place
        finally:
            os.seteuid(user)
            for path in (place, *place.rglob("*")):
                path.chmod(0o700)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("log/day-002.csv", 0, "day-002.csv: cannot be read: Permission denied; expected a log that .* check its perm"),
        ("log", 0, "log: cannot be read: Permission denied; expected a log that .* check its permissions"),
        ("out/manifest.json", 0, "manifest.json: cannot be read: Permission denied; check its permissions"),
        ("out/items.parquet", 0, "items.parquet: Permission denied; expected that this user may read and write"),
        (".", 0o500, r"\.out\.lock: Permission denied; expected that this user may read and write .* check the permis"),
    ],
)
def test_what_may_not_be_read_or_written_is_said(place: Path, name: str, mode: int, message: str) -> None:
    before = (place / "out" / "manifest.json").read_bytes()
    (place / name).chmod(mode)
    with pytest.raises(RecsysError, match=message) as caught:
        run(CONFIG, [place / "log"], place / "out", now_ms=NOW_MS)
    assert not isinstance(caught.value, RefusedError)  # another exit status
    (place / name).chmod(0o700)
    assert (place / "out" / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in place.iterdir()) == ["log", "out"]
    run(CONFIG, [place / "log"], place / "out", now_ms=NOW_MS)


def test_an_artifact_below_a_file_is_said(shop: Path) -> None:
    with pytest.raises(DataError, match="who: File exists; expected a folder here, choose another place"):
        (shop / "who").write_text("a file")
        run(CONFIG, [shop / "log"], shop / "who" / "out", now_ms=NOW_MS)
