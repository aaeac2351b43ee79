import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["recsys", "features", "optimize", "serving"])
def test_each_package_is_the_one_of_this_repository(name: str) -> None:
    found = importlib.import_module(name).__file__
    assert found is not None
    assert Path(found).parents[1] == Path(__file__).parents[1]
