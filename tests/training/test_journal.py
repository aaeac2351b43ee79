import struct
from pathlib import Path

import pytest

from recsys.contracts.errors import ConfigError
from recsys.contracts.protocol import Protocol
from recsys.training import train
from recsys.training.config import Recipe
from recsys.training.journal import Journal
from tests.training.test_precision import changed


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag of the event files of a folder: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.glob("events.out.tfevents.*"):
        content, start = file.read_bytes(), 0
        while start < len(content):
            (size,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            start += 12 + size + 4
    return found


def test_a_checkpoint_holds_an_event_a_round(ring_features: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    manifest = train.run(changed(tiny_recipe, max_epochs=2), ring_features, tmp_path / "c", protocol=Protocol.TIME)
    found = scalars(tmp_path / "c" / "events")
    assert [step for step, _ in found["loss"]] == [1, 2]
    for name in ("loss", "validation_ndcg", "tokens_per_second"):
        assert [value for _, value in found[name]] == pytest.approx([row[name] for row in manifest.metrics["log"]])
    assert not (tmp_path / ".c.events").exists()


def test_events_can_be_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "c", wanted=False)
    journal.move_into(tmp_path)
    assert not list(tmp_path.iterdir())


def test_events_that_were_asked_for_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.training.journal.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'recsys\[tensorboard\]'"):
        Journal(tmp_path / "c", wanted=True)
    Journal(tmp_path / "c", wanted=None).move_into(tmp_path)
    assert not list(tmp_path.iterdir())
