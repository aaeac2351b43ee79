"""Bits that flip in files which nights only link: found in time, said in one line, and mended."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from features import trouble, verify
from features.build import FeaturesConfig, run
from recsys.contracts import artifact
from recsys.contracts.artifact import FileEntry
from recsys.contracts.errors import DamagedError
from tests.features.test_crash import add_day
from tests.features.test_incremental import HEADER, NOW_MS, S, digest_from_the_files, digest_of

NIGHTS = 3
CONFIG = FeaturesConfig(min_count=1, events_per_partition=200, verify_nights=NIGHTS)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A log of eight days, and the artifact of them: one generation of 16 partitions."""
    for day in range(8):
        add_day(tmp_path / "log", day)
    run(CONFIG, [tmp_path / "log"], tmp_path / "out", now_ms=NOW_MS)
    return tmp_path


def night(shop: Path, number: int, config: FeaturesConfig = CONFIG) -> artifact.Manifest:
    """A night that brings one event."""
    (shop / "log" / f"night-{number:02d}.csv").write_text(f"{HEADER}u1,i1,{S + 90 * 86_400 + number},view,,\n")
    return run(config, [shop / "log"], shop / "out", now_ms=NOW_MS)


def partitions(shop: Path) -> list[Path]:
    return sorted((shop / "out" / "histories" / "g00000").iterdir())


def flip(file: Path) -> None:
    """Turn a bit of the last quarter, in place: where files of two artifacts are links, in both."""
    data = bytearray(file.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    file.write_bytes(data)


def bytes_of(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def nights_until_refused(shop: Path) -> tuple[int, str]:
    """How many nights were published before the one that refuses, and what that says; at most two rounds of them."""
    for number in range(2 * NIGHTS):
        before = bytes_of(shop / "out")
        try:
            night(shop, number)
        except DamagedError as error:
            assert bytes_of(shop / "out") == before
            assert sorted(path.name for path in shop.iterdir() if path.name not in ("copy", "out")) == ["log"]
            return number, str(error)
    return 2 * NIGHTS, ""


@pytest.mark.parametrize("number", [1, 6, 14])
def test_a_bit_that_flips_in_a_linked_file_is_found_within_the_nights_of_the_setting(shop: Path, number: int) -> None:
    file = partitions(shop)[number]
    name, sound = str(file.relative_to(shop / "out")), artifact.sha256_of(file)
    flip(file)
    published, said = nights_until_refused(shop)
    assert published < NIGHTS
    assert said == (
        f"{shop / 'out' / name}: altered, sha256 {artifact.sha256_of(file)[:12]} found, {sound[:12]} expected; put it "
        "back from a copy, or build the artifact again with --full"
    )
    mended = run(CONFIG, [shop / "log"], shop / "out", full=True, now_ms=NOW_MS)
    assert mended.metrics["why_full"] == "asked for"
    assert digest_from_the_files(shop / "out") == digest_of(mended)
    assert digest_of(mended) == digest_of(run(CONFIG, [shop / "log"], shop / "fresh", now_ms=NOW_MS))
    assert [night(shop, 90 + n).metrics["why_full"] for n in range(NIGHTS)] == [None] * NIGHTS


def test_a_damaged_file_that_is_put_back_from_a_copy_is_sound(shop: Path) -> None:
    shutil.copytree(shop / "out", shop / "copy")
    for file in partitions(shop):
        flip(file)
    assert nights_until_refused(shop)[0] == 0
    for file in partitions(shop):
        shutil.copyfile(shop / "copy" / file.relative_to(shop / "out"), file)
    assert [night(shop, n).metrics["linked"]["night"] for n in range(NIGHTS)] == [2, 3, 4]
    assert digest_from_the_files(shop / "out") == digest_of(artifact.read_manifest(shop / "out"))


def test_each_linked_file_is_read_once_in_the_nights_of_the_setting_and_the_manifest_says_it(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {str(file.relative_to(shop / "out")) for file in partitions(shop)}
    read: list[str] = []
    check = trouble.check

    def noted(out: Path, name: str, entry: FileEntry, *, is_hashed: bool = True) -> None:
        read.extend([name] if is_hashed else [])
        check(out, name, entry, is_hashed=is_hashed)

    monkeypatch.setattr(trouble, "check", noted)
    said = [night(shop, n).metrics["linked"] for n in range(NIGHTS)]
    assert sorted(name for name in read if name in names) == sorted(names)
    assert [each["night"] for each in said] == [2, 3, 4]  # the full build was the first
    assert all(abs(each["num_verified"] - each["num_files"] / NIGHTS) <= 2 for each in said)
    assert all(0 < each["verified_bytes"] < artifact_size(shop / "out") / 2 for each in said)
    read.clear()
    assert night(shop, 9, CONFIG.model_copy(update={"verify_nights": 1})).metrics["linked"]["num_verified"] >= 16
    assert names <= {*read}


def artifact_size(place: Path) -> int:
    return sum(entry.size_bytes for entry in artifact.read_manifest(place).files.values())


def test_damaged_quarantine_is_not_carried_over_as_sound(shop: Path) -> None:
    with (shop / "log" / "day-000.csv").open("a") as file:
        file.write(",i1,1600000000,view,,\n")
    run(CONFIG, [shop / "log"], shop / "out", now_ms=NOW_MS)
    flip(shop / "out" / "quarantine.csv")
    with pytest.raises(DamagedError, match=r"quarantine.csv: altered, sha256 .*, or build the artifact again with"):
        night(shop, 1)
    run(CONFIG, [shop / "log"], shop / "out", full=True, now_ms=NOW_MS)
    night(shop, 2)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "recsys", "features", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=100)


def test_a_command_verifies_all_files_and_writes_nothing(shop: Path) -> None:
    night(shop, 1)
    before = bytes_of(shop / "out")
    found = json.loads(command("verify", shop / "out", "--json").stdout)
    manifest = artifact.read_manifest(shop / "out")
    assert found == {
        "digest": manifest.digest,
        "created_at": manifest.created_at,
        "num_files": len(manifest.files),
        "size_bytes": artifact_size(shop / "out"),
    }
    for file in partitions(shop)[-2:]:
        flip(file)
    refused = command("verify", shop / "out")
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
    assert refused.stderr.startswith(f"recsys: {partitions(shop)[-2]}: altered, sha256 ")
    assert refused.stderr.endswith("again with --full (1 more files of it are damaged)\n")
    assert bytes_of(shop / "out").keys() == before.keys()
    again = ("build", shop / "log", "--out", shop / "out", "--min-count", 1)
    assert command(*again).stdout.count("nothing new") == 0
    assert command(*again, "--full").returncode == 0
    assert "are as the manifest of" in command("verify", shop / "out").stdout
    assert "no artifact here" in command("verify", shop).stderr


def test_an_artifact_that_is_published_while_another_is_verified_is_no_damage(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = artifact.read_manifest(shop / "out")
    problem_of, meanwhile = trouble.problem_of, [lambda: night(shop, 1)]

    def asked(out: Path, name: str, entry: FileEntry, *, is_hashed: bool = True) -> str | None:
        if meanwhile and name == "users.parquet":
            meanwhile.pop()()
        return problem_of(out, name, entry, is_hashed=is_hashed)

    monkeypatch.setattr(trouble, "problem_of", asked)
    found = verify.run(shop / "out")
    assert found.digest == artifact.read_manifest(shop / "out").digest != before.digest
