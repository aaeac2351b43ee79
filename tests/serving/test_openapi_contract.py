"""The API under generated requests, good and bad: no failure of ours, and no answer that is not documented."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def described(api: dict) -> Iterator[tuple[str, dict]]:
    """(where, what has a schema) for every parameter, body and answer."""
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            for parameter in operation.get("parameters", []):
                yield f"{where} {parameter['name']}", parameter
            contents = {"body": operation.get("requestBody", {}), **operation["responses"]}
            for name, content in contents.items():
                for media_type, one in content.get("content", {}).items():
                    yield f"{where} {name} {media_type}", one


def examples(api: dict, one: dict) -> list:
    """Of what has a schema: its own, those of the schema it names, or lists of those of what it is a list of."""
    if "example" in one:
        return [one["example"]]
    schema = one["schema"]
    if "$ref" in schema:
        schema = api["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if schema.get("type") == "array":
        return [[each] for each in examples(api, {"schema": schema["items"]})]
    return schema.get("examples", [])


def test_everything_that_is_sent_or_answered_has_an_example_that_fits_its_schema(shop) -> None:
    api = shop.client.get("/openapi.json").json()
    places = dict(described(api))
    assert {"get /v1/users/{user_id}/history limit", "put /v1/admin/rules body application/json"} <= set(places)
    for where, one in places.items():
        shown = examples(api, one)
        assert shown, where
        schema = {**one.get("schema", {"type": "string"}), "components": api["components"]}
        for example in shown:
            wrong = [error.message for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(example)]
            assert wrong == [], where
            assert not isinstance(example, dict) or any(example.values()), where


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
    assert "26 selected / 26 total" in done.stdout
