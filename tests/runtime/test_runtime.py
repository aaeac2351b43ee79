import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import recsys
from recsys.contracts import artifact
from recsys.contracts.errors import ArtifactError, UnknownItemError
from recsys.contracts.ids import PAD, Vocabulary
from recsys.contracts.precision import ItemFormat
from recsys.runtime.index import ItemIndex
from recsys.runtime.items import ItemTable
from recsys.runtime.openvino import OpenVinoEngine
from recsys.runtime.recommender import Recommender, Users
from recsys.runtime.release import Release
from recsys.runtime.scoring import CodeScorer
from recsys.windows import padded_batches

CONVERT = """
from recsys.runtime import openvino
openvino.has_bf16()
from openvino import convert_model
from torch import nn, zeros
convert_model(nn.ReLU(), example_input=zeros(1))
"""


def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """Where it does, it keeps a number of this machine at home."""
    unlike_ci = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    subprocess.run([sys.executable, "-c", CONVERT], check=True, env={**unlike_ci, "HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def recommender(ring_releases: Path) -> Recommender:
    return Recommender.load(ring_releases)


def test_mixed_lengths_are_batched_with_little_padding_and_none_is_lost() -> None:
    windows = [np.arange(1, n + 1, dtype=np.int32) for n in [5, 1000, 7, 6, 1, 900, 40]]
    seen = {}
    for rows, tokens_BL, last_B in padded_batches(windows, max_tokens=2048):
        assert tokens_BL.size <= 2048
        for row, i in enumerate(rows):
            seen[i] = tokens_BL[row, : last_B[row] + 1]
            assert (tokens_BL[row, last_B[row] + 1 :] == PAD).all()
    assert all((seen[i] == window).all() for i, window in enumerate(windows))


def test_the_index_returns_the_largest_inner_products_but_never_what_is_excluded() -> None:
    items = np.array([[1, 0], [0, 1], [2, 0], [-1, 0]], dtype=np.float32)
    index = ItemIndex.build(items)
    query = np.array([[1.0, 0.5]], dtype=np.float32)
    tokens, scores = index.search(query, 3)
    assert tokens.tolist() == [[3, 1, 2]]
    assert scores.tolist() == [[2.0, 1.0, 0.5]]
    assert index.search(query, 3, [np.array([3, 2])])[0].tolist() == [[1, 4, PAD]]
    assert index.search(query, 6)[0].tolist() == [[3, 1, 2, 4, PAD, PAD]]


def test_a_shift_is_added_to_an_items_score() -> None:
    items = np.array([[1, 0], [0, 1], [2, 0]], dtype=np.float32)
    index = ItemIndex.build(items, np.array([0, 3, -5], dtype=np.float32))
    query = np.array([[1.0, 0.5]], dtype=np.float32)
    tokens, scores = index.search(query, 3)
    assert tokens.tolist() == [[2, 1, 3]]
    assert scores.tolist() == [[3.5, 1.0, -3.0]]
    assert index.scores(query[0], np.array([3, 2])).tolist() == [-3.0, 3.5]
    assert index.width == 2
    np.testing.assert_array_equal(index.vectors(np.array([3, 1])), items[[2, 0]])


def test_the_next_item_of_the_ring_comes_first(recommender: Recommender) -> None:
    items = recommender.recommend(["sku-4", "sku-5", "sku-6"], k=3)
    assert items[0].item_id == "sku-7"
    assert items[0].title == "Item 7"
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)


def test_unknown_items_are_skipped_and_only_unknown_ones_refused(recommender: Recommender) -> None:
    assert recommender.recommend(["nope", "sku-4", "sku-5", "sku-6"], k=1)[0].item_id == "sku-7"
    with pytest.raises(UnknownItemError, match="none of the 1 items"):
        recommender.recommend(["nope"])
    with pytest.raises(UnknownItemError, match="none of the 0 items"):
        recommender.recommend([])


def test_excluded_and_seen_items_are_left_out(recommender: Recommender) -> None:
    history = ["sku-4", "sku-5", "sku-6"]
    assert "sku-7" not in {i.item_id for i in recommender.recommend(history, k=30, exclude=["sku-7", "nope"])}
    rest = recommender.recommend(history, k=30, exclude_seen=True)
    assert len(rest) == 27
    assert not {item.item_id for item in rest} & set(history)


def test_a_history_of_100000_events_is_answered(recommender: Recommender) -> None:
    history = [f"sku-{1 + i % 30}" for i in range(100_000)]  # ends on sku-10
    assert recommender.recommend(history, k=1)[0].item_id == "sku-11"


def test_popular_items_need_no_history(recommender: Recommender) -> None:
    counts = recommender.release.vocabulary.num_events
    found = recommender.popular(5, exclude=["sku-1"])
    assert len(found) == 5
    assert [item.score for item in found] == sorted(np.delete(counts[1:], 0).tolist(), reverse=True)[:5]


def test_a_history_of_nothing_is_ranked_by_what_is_popular(recommender: Recommender) -> None:
    nothing, three = np.empty(0, dtype=np.int32), np.array([4, 5, 6], dtype=np.int32)
    lists = recommender.rank([three, nothing, three], 40, [nothing, three, nothing])
    np.testing.assert_array_equal(lists[0], recommender.rank([three], 40)[0])
    np.testing.assert_array_equal(lists[0], lists[2])
    tokens = recommender.release.vocabulary.tokens(i.item_id for i in recommender.popular(40))
    assert lists[1].tolist() == [*(t for t in tokens.tolist() if t not in (4, 5, 6)), *[0] * 13]


def test_what_is_no_question_is_refused(recommender: Recommender, ring_features: Path) -> None:
    with pytest.raises(ValueError, match="k = 0, expected 1 or more"):
        recommender.recommend(["sku-4"], k=0)
    with pytest.raises(ValueError, match="k = -1, expected 1 or more"):
        recommender.popular(-1)
    with pytest.raises(ValueError, match="'sku-4' is one string, expected a list of ids"):
        recommender.recommend("sku-4")
    with pytest.raises(ValueError, match="'u1' is one string, expected a list of ids"):
        recommender.recommend(Users(ring_features, "u1"))


def test_batch_and_single_answers_agree_and_threads_do_not_disturb_each_other(recommender: Recommender) -> None:
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, size=n).astype(np.int32) for n in generator.integers(1, 20, size=40)]
    together = recommender.rank(histories, k=5)
    with ThreadPoolExecutor(4) as pool:
        alone = np.concatenate(list(pool.map(lambda h: recommender.rank([h], k=5), histories * 3)))
    np.testing.assert_array_equal(np.tile(together, (3, 1)), alone)


def test_recommender_is_at_the_top_of_the_package() -> None:
    assert recsys.Recommender is Recommender
    assert recsys.Users is Users


def test_a_release_with_the_items_of_another_is_refused(ring_releases: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact.resolve_release(ring_releases), tmp_path / "r")
    ItemTable.of(np.ones((31, 32), dtype=np.float32), ItemFormat.INT8).save(folder)
    with pytest.raises(ArtifactError, match=r"items.safetensors: .*altered"):
        Recommender.load(folder)


def test_a_release_bound_to_another_vocabulary_is_refused(ring_releases: Path, tmp_path: Path) -> None:
    source = artifact.resolve_release(ring_releases)
    manifest = artifact.read_manifest(source)
    with artifact.writing(tmp_path / "r", "release") as writer:
        for name in manifest.files:
            shutil.copy(source / name, writer.folder / name)
        Vocabulary(Vocabulary.load(source).items[::-1]).save(writer.folder, packed=True)
        writer.commit(parents=manifest.parents, config=manifest.config, metrics={})
    with pytest.raises(ArtifactError, match="engine and index made for"):
        Recommender.load(tmp_path / "r")


def test_the_manifest_of_a_release_names_what_it_was_made_from(ring_releases: Path, ring_checkpoint: Path) -> None:
    folder = artifact.resolve_release(ring_releases)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parents"]["checkpoint"] == artifact.read_manifest(ring_checkpoint).digest
    assert manifest["metrics"]["fitted_on"] == "events before the time cut"


def test_a_release_has_the_temperature_of_its_checkpoint_and_one_of_before_has_1(
    ring_releases: Path, ring_checkpoint: Path, tmp_path: Path
) -> None:
    found = Recommender.load(ring_releases).release
    assert found.temperature == artifact.read_manifest(ring_checkpoint).config["temperature"] != 1
    config = {name: value for name, value in found.manifest.config.items() if name != "temperature"}
    with artifact.writing(tmp_path / "r", "release") as writer:
        for name in found.manifest.files:
            shutil.copy(found.folder / name, writer.folder / name)
        writer.commit(parents=found.manifest.parents, config=config, metrics=found.manifest.metrics)
    assert Recommender.load(tmp_path / "r").release.temperature == 1


def test_no_graph_is_bound_to_a_core(ring_releases: Path) -> None:
    """Bound, all graphs share the first cores, however many are idle."""
    release = Release.open(ring_releases, num_threads=1)
    assert isinstance(release.engine, OpenVinoEngine)
    scorer = CodeScorer(np.ones((4, 2), dtype=np.int8), np.ones(4, dtype=np.float32))
    graphs = release.engine._open_windows, release.engine._append_one
    for compiled in (*(graph.compiled for graph in graphs), scorer._compiled):
        assert compiled.get_property("ENABLE_CPU_PINNING") is False
