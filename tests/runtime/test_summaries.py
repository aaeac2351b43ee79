"""Summaries on top of an engine: what it answers is what the trained model answers, however it comes about."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.export import build_engine
from recsys.contracts.errors import ArtifactError
from recsys.contracts.precision import CacheFormat, ItemFormat
from recsys.model.config import ModelConfig
from recsys.model.reference import encode
from recsys.model.summaries import SummaryModel
from recsys.runtime.cuda import CudaEngine
from recsys.runtime.engine import Engine
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from recsys.runtime.summaries import Summaries, SummaryEngine, SummaryWeights
from recsys.runtime.tiered import TieredEngine
from recsys.windows import WindowConfig, answer_context, digest, num_windows, open_window

NUM_ITEMS = 50
CONFIG = ModelConfig(width=32, num_layers=2, num_heads=2, head_dim=16, feedforward_width=48, init_std=0.2)
TOLERANCE = 2e-5


def window_of(num_tokens: int) -> WindowConfig:
    return WindowConfig(size=20, overlap_share=0.3, num_summaries=2, summary_tokens=num_tokens)  # stride 14


@pytest.fixture(scope="module", params=[1, 3])
def model(request: pytest.FixtureRequest) -> SummaryModel:
    torch.manual_seed(0)
    return SummaryModel(CONFIG, NUM_ITEMS, window_of(request.param)).eval()


@pytest.fixture(scope="module")
def items(model: SummaryModel) -> ItemTable:
    return ItemTable.of(model.embedding.weight.detach().numpy(), ItemFormat.FLOAT32)


@pytest.fixture(scope="module")
def below(model: SummaryModel, items: ItemTable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder, size = tmp_path_factory.mktemp("engine"), model.window.most_rows
    build_engine(model, folder, CacheFormat.FLOAT32)
    cpu = OpenVinoEngine(folder, items, num_threads=1, precision="test", window_size=size, cache=CacheFormat.FLOAT32)
    cuda = CudaEngine(model, items, window_size=size, cache=CacheFormat.FLOAT32, precision="float32", device="cpu")
    return {"cpu": cpu, "cuda": cuda, "tiered": TieredEngine(cpu, cuda, 17)}


@pytest.fixture
def engine(model: SummaryModel, items: ItemTable, below: dict[str, Engine]) -> Callable[..., SummaryEngine]:
    def made(name: str = "cpu", at_hand: Summaries | None = None) -> SummaryEngine:
        weights = SummaryWeights(*model.weights())
        return SummaryEngine(below[name], items, weights, model.window, at_hand or Summaries())

    return made


def histories(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(1, NUM_ITEMS + 1, length).astype(np.int32) for length in lengths]


def contexts(model: SummaryModel, *lengths: int) -> list[np.ndarray]:
    return [answer_context(history, model.window) for history in histories(*lengths)]


def is_at_hand(engine: SummaryEngine, context: np.ndarray) -> bool:
    return not engine.open_at_once(context)[1]


@pytest.mark.parametrize("name", ["cpu", "cuda", "tiered"])
def test_an_engine_answers_as_the_trained_model(model: SummaryModel, engine, name: str) -> None:
    given_ = contexts(model, 1, 19, 20, 21, 34, 35, 48, 49, 100, 7)
    np.testing.assert_allclose(engine(name).encode(given_), encode(model, given_), atol=TOLERANCE)


def test_closed_windows_matter(model: SummaryModel, engine) -> None:
    context = contexts(model, 48)[0]
    alone = engine().encode([open_window(context, model.window)])
    assert np.abs(engine().encode([context]) - alone).max() > 1e-3
    np.testing.assert_allclose(engine().open_at_once(context)[0].vector_D, alone[0], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["cpu", "tiered"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_split_into_appends_gives_what_one_encode_gives(
    model: SummaryModel, items: ItemTable, below: dict[str, Engine], name: str, data: st.DataObject
) -> None:
    weights = SummaryWeights(*model.weights())
    engine = SummaryEngine(below[name], items, weights, model.window, Summaries())
    history = histories(data.draw(st.integers(21, 70)), seed=data.draw(st.integers(0, 9)))[0]
    num_events = data.draw(st.integers(1, len(history)))
    session = engine.open([answer_context(history[:num_events], model.window)])[0]
    while num_events < len(history):
        more = data.draw(st.integers(1, len(history) - num_events))
        if num_windows(num_events + more, model.window) == num_windows(num_events, model.window):
            session = engine.append([session], [history[num_events : num_events + more]])[0]
        else:  # the window is full: the next one opens, and reads what it left
            session = engine.open([answer_context(history[: num_events + more], model.window)])[0]
        num_events += more
        assert session.length == len(open_window(history[:num_events], model.window))
    expected = encode(model, [answer_context(history, model.window)])[0]
    np.testing.assert_allclose(session.vector_D, expected, atol=TOLERANCE)


def test_a_session_keeps_the_events_of_its_window_alone(model: SummaryModel, engine) -> None:
    context = contexts(model, 40)[0]
    session = engine().open([context])[0]
    assert session.length == len(open_window(context, model.window)) == 12
    assert len(engine().kept(session)) == 12


def test_a_window_that_is_full_is_refused_although_the_engine_below_has_room(model: SummaryModel, engine) -> None:
    session = engine().open(contexts(model, 34))[0]
    assert session.length == 20
    with pytest.raises(ValueError, match="20 events and 1 more do not fit into a window of 20; open the next window"):
        engine().append([session], [np.array([1], dtype=np.int32)])


def test_summaries_are_encoded_once(model: SummaryModel, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    first, second = contexts(model, 48, 50)
    assert not is_at_hand(made, first)
    assert made.prepare([first, second, first]) == 2 + 2  # both histories have windows of their own
    assert is_at_hand(made, first)
    assert made.prepare([first]) == 0
    asked: list[int] = []
    summaries = made.summaries
    monkeypatch.setattr(made, "summaries", lambda closed: asked.append(len(closed)) or summaries(closed))
    made.open([first])
    made.encode([second])
    assert sum(asked) == 0


def test_a_history_of_one_window_needs_no_summaries(model: SummaryModel, engine) -> None:
    made = engine()
    assert is_at_hand(made, contexts(model, 20)[0])
    assert made.prepare(contexts(model, 3, 20)) == 0


def test_an_event_that_comes_late_makes_other_summaries(model: SummaryModel, engine) -> None:
    made = engine()
    history = histories(48)[0]
    made.prepare([answer_context(history, model.window)])
    late = np.insert(history, 3, 7)[:48].astype(np.int32)
    assert not is_at_hand(made, answer_context(late, model.window))


def test_what_is_kept_is_bounded_and_the_least_used_leaves_first() -> None:
    kept = Summaries(limit_bytes=3 * 64)
    one = np.ones((1, 16), dtype=np.float32)
    for name in "abc":
        kept.put(name, one)
    assert kept.get("a") is not None
    kept.put("d", one)
    assert [name for name in "abcd" if kept.get(name) is not None] == ["a", "c", "d"]
    kept.drop("a")
    kept.drop("never there")
    assert kept.get("a") is None
    kept.put("e", one)
    assert [name for name in "cde" if kept.get(name) is not None] == ["c", "d", "e"]


def test_a_kept_summary_does_not_keep_those_it_was_encoded_with() -> None:
    kept, many = Summaries(), np.ones((1000, 1, 16), dtype=np.float32)
    kept.put("a", many[3])
    found = kept.get("a")
    assert found is not None
    assert found.base is None


def test_at_once_is_without_waiting_and_whole_where_all_is_at_hand(
    model: SummaryModel, engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, context = engine(), contexts(model, 48)[0]
    made.prepare([context])
    monkeypatch.setattr(made, "summaries", lambda closed: pytest.fail("encoded"))
    session, is_partial = made.open_at_once(context)
    assert not is_partial
    np.testing.assert_allclose(session.vector_D, encode(model, [context])[0], atol=TOLERANCE)
    assert session.length == len(open_window(context, model.window))
    made.at_hand.drop(digest(context[:20]))
    session, is_partial = made.open_at_once(context)
    assert is_partial
    alone = open_window(context, model.window)
    np.testing.assert_allclose(session.vector_D, encode(model, [alone])[0], atol=TOLERANCE)


def test_what_was_stored_beforehand_is_read(model: SummaryModel, engine) -> None:
    context = contexts(model, 48)[0]
    closed = [context[:20], context[14:34]]
    stored = dict(zip(map(digest, closed), engine().summaries(closed), strict=True))
    made = engine(at_hand=Summaries(stored))
    assert is_at_hand(made, context)
    np.testing.assert_allclose(made.encode([context]), encode(model, [context]), atol=TOLERANCE)


def test_what_does_not_fit_is_encoded_again_and_the_answer_is_the_same(model: SummaryModel, engine) -> None:
    given_ = contexts(model, 48, 60, 70)
    np.testing.assert_allclose(
        engine(at_hand=Summaries(limit_bytes=0)).encode(given_), encode(model, given_), atol=TOLERANCE
    )


def test_weights_travel_and_damage_is_named(model: SummaryModel, tmp_path: Path) -> None:
    weights = SummaryWeights(*model.weights())
    weights.save(tmp_path)
    found = SummaryWeights.load(tmp_path)
    np.testing.assert_array_equal(found.query_MD, weights.query_MD)
    np.testing.assert_array_equal(found.project_DD, weights.project_DD)
    (tmp_path / SummaryWeights.FILE_NAME).write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="no weights of summaries"):
        SummaryWeights.load(tmp_path)
