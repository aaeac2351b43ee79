import importlib
import tomllib
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["recsys", "features", "optimize", "serving"])
def test_each_package_is_the_one_of_this_repository(name: str) -> None:
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).parents[1] == Path(__file__).parents[1]


def test_faiss_on_gpus_is_of_the_version_whose_place_it_takes() -> None:
    root = Path(__file__).parents[1]
    pinned = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["faiss-gpu"]
    assert extra == [f"faiss-gpu=={pinned['faiss-cpu']}"]
    assert pinned["faiss-gpu"] == pinned["faiss-cpu"]
