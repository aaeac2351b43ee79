"""The API under generated requests, good and bad: no failure of ours, and no answer that is not documented."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_generated_requests_find_no_5xx_and_no_undocumented_answer(open_shop, tmp_path: Path) -> None:
    token = {"name": "t", "sha256": hashlib.sha256(b"tok").hexdigest(), "scopes": ["read", "write", "admin"]}
    shop = open_shop(deadline_ms=1_000, tokens=(token,))
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{shop.client.base_url}/openapi.json",
        "--header", "Authorization: Bearer tok", "--checks", CHECKS, "--max-examples", "25", "--seed", "1",
        "--phases", "examples,coverage,fuzzing",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5_000:]
    assert "24 selected / 24 total" in done.stdout
