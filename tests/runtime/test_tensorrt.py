"""Which shapes of a plan become CUDA graphs, and by which context. A plan of no layer: it doubles its input."""

import numpy as np
import pytest

from recsys.runtime import tensorrt
from recsys.runtime.tensorrt import Loaded, Plan
from tests.runtime.host_gpu import HostContext, HostGpu


class Doubling(HostContext):
    """vector = 2 x embedded."""

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["embedded"]

    def compute(self) -> None:
        shape = self.shapes["embedded"]
        self.numbers("vector", shape)[...] = 2 * self.numbers("embedded", shape)


def answers(plan: Plan, sizes: str) -> None:
    """A letter is a shape: of A two numbers, of B three …; what goes in is new each time."""
    for turn, letter in enumerate(sizes):
        numbers = np.full((1, ord(letter) - ord("A") + 2), turn + 1, dtype=np.float32)
        found = plan.run({"embedded": numbers})["vector"].download()
        np.testing.assert_array_equal(found, 2 * numbers)


@pytest.mark.parametrize(
    ("sizes", "num_captured", "num_launched"),
    [
        ("AAAA", 1, 2),  # enqueued, enqueued and captured, launched, launched
        ("CABACBABCA", 3, 4),
        ("CACBAA", 2, 1),  # C and A are captured with another shape enqueued since they were first seen
        ("AABBAA", 3, 1),  # B needs more memory: the graph of A knew the old one, and is captured anew
    ],
)
def test_a_graph_has_a_context_that_saw_its_shape_last_and_no_other(
    sizes: str, num_captured: int, num_launched: int
) -> None:
    gpu = HostGpu()
    answers(Plan(Loaded(lambda: Doubling(gpu), captures=False), gpu, num_layers=0), sizes)
    assert (gpu.num_captured, gpu.num_launched) == (num_captured, num_launched)


def test_shapes_beyond_the_most_graphs_are_enqueued(monkeypatch) -> None:
    monkeypatch.setattr(tensorrt, "_MAX_GRAPHS", 1)
    gpu = HostGpu()
    answers(Plan(Loaded(lambda: Doubling(gpu), captures=False), gpu, num_layers=0), "BABABABA")
    assert (gpu.num_captured, gpu.num_launched) == (1, 2)


def test_a_library_that_captures_by_itself_has_one_context_and_no_graph_of_ours() -> None:
    gpu, made = HostGpu(), []
    plan = Plan(Loaded(lambda: made.append(1) or Doubling(gpu), captures=True), gpu, num_layers=0)
    answers(plan, "BABABA")
    assert (gpu.num_captured, len(made)) == (0, 1)
