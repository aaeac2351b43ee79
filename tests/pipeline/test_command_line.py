"""The commands as a user types them, in processes of their own."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from recsys.cli import main
from recsys.cli.optimize import optimize_app
from recsys.contracts import artifact

ROOT = Path(__file__).parents[2]


def recsys(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recsys", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert not check or result.returncode == 0, result.stderr
    return result


def refused(*arguments: object) -> str:
    """The one line of a user's mistake."""
    result = recsys(*arguments, check=False)
    return line_of_mistake(result.returncode, result.stderr)


def refused_here(*arguments: object) -> str:
    """The same without a process of its own, which takes seconds to start."""
    with (
        mock.patch.object(sys, "argv", ["recsys", *map(str, arguments)]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stderr(io.StringIO()) as errors,
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return line_of_mistake(ended.value.code, errors.getvalue())


def line_of_mistake(status: object, errors: str) -> str:
    assert status == 2, (status, errors)
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("recsys: ")
    return errors


def gate(folder: Path, **limits: float) -> Path:
    """A settings file with these limits of the gate."""
    file = folder / "gate.toml"
    file.write_text("[optimize.gate]\n" + "".join(f"{name} = {limit}\n" for name, limit in limits.items()))
    return file


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small log, its features, a checkpoint and a release, each made by its command."""
    folder = tmp_path_factory.mktemp("shop")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        "[model]\nwidth = 16\nhead_dim = 8\nfeedforward_width = 16\nnum_layers = 1\n"
        "[training]\nmax_epochs = 2\nnum_threads = 1\n"
    )
    log = folder / "log.csv.gz"
    recsys("features", "simulate", "--out", log, "--users", 60, "--items", 80, "--events", 3000, "--seed", 1)
    recsys("features", "build", log, "--out", folder / "features")
    recsys("train", folder / "features", "--out", folder / "checkpoint", "--recipe", recipe)
    recsys(
        *("optimize", folder / "checkpoint", "--features", folder / "features", "--out", folder / "releases"),
        *("--bits", 32, "--config", gate(folder, min_top10_overlap=0.9)),  # 17 users, and a model that learned little
    )
    return folder


def test_evaluate_prints_model_and_baselines(shop: Path) -> None:
    report = json.loads(recsys("evaluate", shop / "releases", "--features", shop / "features", "--json").stdout)
    assert set(report["baselines"]) == {"popularity", "trending", "last_item", "cooccurrence"}
    assert {"recall@10", "ndcg@10", "mrr", "coverage@10", "next"} <= set(report["model"])
    assert report["protocol"] == "time"
    assert report["num_users"] > 0


def test_recommend_by_user_and_by_history(shop: Path) -> None:
    history = shop / "history.txt"
    history.write_text("sku-00001\nsku-00002\nsku-00003\nno-such-item\n" * 25_000)  # 100,000 events
    items = json.loads(recsys("recommend", shop / "releases", "--history", history, "-k", 5, "--json").stdout)["items"]
    assert len(items) == 5
    by_user = recsys("recommend", shop / "releases", "--features", shop / "features", "--user", user_of(shop), "-k", 5)
    assert by_user.stdout.count("sku-") == 5
    out = shop / "all.parquet"
    everyone = ("--features", shop / "features", "--all", "--out", out, "--json")
    assert json.loads(recsys("recommend", shop / "releases", *everyone).stdout)["num_users"] == 60
    assert out.exists()


def test_recommend_takes_the_filters_of_the_endpoint(shop: Path) -> None:
    import polars as pl

    items = pl.read_parquet(shop / "features" / "items.parquet").filter(pl.col("price") <= 20)
    category = items["category"].mode().sort()[0]
    fitting = set(items.filter(pl.col("category") == category)["item_id"])
    where = ("recommend", shop / "releases", "--features", shop / "features")
    filters = ("--category", category, "--max-price", 20)
    recsys(*where, "--all", "--out", shop / "some.parquet", *filters)
    found = set(pl.read_parquet(shop / "some.parquet")["item_id"])
    assert found
    assert found <= fitting
    mine = recsys(*where, "--user", user_of(shop), "--json", *filters)
    assert {item["item_id"] for item in json.loads(mine.stdout)["items"]} <= fitting
    message = refused(*where, "--all", "--out", shop / "none.parquet", "--category", "no such thing")
    assert "passes the filters; ask for other categories or a wider range of prices" in message
    assert "recsys recommend: min_price = -1.0: input should be greater than or equal to 0" in refused_here(
        *where, "--user", user_of(shop), "--min-price", -1
    )
    assert not (shop / "none.parquet").exists()


def user_of(shop: Path) -> str:
    import polars as pl

    return str(pl.read_parquet(shop / "features" / "users.parquet")["user_id"][0])


def test_import_twice_stores_once(shop: Path) -> None:
    url = f"sqlite:///{shop / 'store.db'}"
    first = json.loads(recsys("store", "import", shop / "log.csv.gz", "--store", url, "--json").stdout)
    again = json.loads(recsys("store", "import", shop / "log.csv.gz", "--store", url, "--json").stdout)
    assert first["stored"] > 1000
    assert again == {"stored": 0, "duplicates": first["stored"]}


def test_the_serving_process_has_no_torch_and_answers(shop: Path) -> None:
    """A real server in a process of its own, asked over HTTP, then looked into."""
    program = textwrap.dedent(
        """
        import json, socket, sys, threading, urllib.request
        from pathlib import Path
        import uvicorn
        from serving.app import load_app
        from serving.config import ServeConfig
        app, _ = load_app(ServeConfig(deadline_ms=10000), Path(sys.argv[1]), sys.argv[2])
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        listening = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/recommendations"
        body = json.dumps({"events": [{"item_id": "sku-00001"}], "k": 3}).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        answer = json.loads(urllib.request.urlopen(request).read())
        loaded = sorted(sys.modules)
        server.should_exit = True
        thread.join()
        print(json.dumps({"answer": answer, "modules": loaded}))
        """
    )
    command = [sys.executable, "-c", program, str(shop / "releases"), f"sqlite:///{shop / 'modules.db'}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["answer"]["items"]) == 3
    assert found["answer"]["source"] == "model"
    heavy = {"torch", "transformers", "nncf", "polars", "pandas", "features", "optimize"}
    assert not heavy & {name.split(".")[0] for name in found["modules"]}


def test_the_serve_benchmark_measures_a_real_server(shop: Path) -> None:
    values = json.loads(
        recsys("benchmark", "serve", shop / "releases", "--requests", 20, "--events", 20, "--kills", 1, "--json").stdout
    )
    assert (values["requests"], values["errors"], values["overload_errors"]) == (20, 0, 0)
    assert (values["switch_requests"], values["switch_errors"], len(values["switch_s"])) == (20, 0, 2)
    assert 0 < values["p50_ms"] <= values["p99_ms"]
    assert (values["kills"], values["acknowledged_events_lost"]) == (1, 0) and values["acknowledged_events"] > 0
    assert {
        "late",
        "degraded_share",
        "warm_p50_ms",
        "ready_s",
        "ready_mb",
        "answering_mb",
        "overload_late",
        "capacity_cold_per_s",
    } <= set(values)


def test_windows_are_printed_beside_full_attention() -> None:
    values = json.loads(recsys("benchmark", "windows", "--context", 2048, "--json").stdout)
    assert [row["window"]["size"] for row in values["settings"]] == [2048, 1638, 1024]


def test_a_users_mistake_is_one_line_and_exit_status_2(shop: Path, tmp_path: Path) -> None:
    features, releases = shop / "features", shop / "releases"
    out = tmp_path / "out"
    assert "no such file or folder" in refused("features", "build", tmp_path / "nope.csv", "--out", out)
    assert "expected generic or one of" in refused_here(
        "features", "build", shop / "log.csv.gz", "--format", "x", "--out", out
    )
    assert "--map x=y" in refused_here("features", "build", shop / "log.csv.gz", "--map", "x=y", "--out", out)
    assert "no artifact here" in refused("train", tmp_path, "--out", out)
    assert "1 of 1 users are not in it, the first is 'nobody'" in refused(
        "recommend", releases, "--features", features, "--user", "nobody"
    )
    assert "no release here" in refused("evaluate", tmp_path, "--features", features)
    assert "--user with --features" in refused_here("recommend", releases)
    assert "give one of --user" in refused_here("recommend", releases, "--user", "u", "--all")
    assert "need --features DIR" in refused_here("recommend", releases, "--all")
    assert "no such config file" in refused("serve", releases, "--config", tmp_path / "x.toml")
    assert "create it first" in refused("serve", releases, "--store", "sqlite:////no/such/x.db")
    assert "fitted under protocol time" in refused_here(
        "evaluate", releases, "--features", features, "--protocol", "last-out"
    )
    choices = ("benchmark", "choices", "--features", features, "--only")
    assert "no rival of that name: lstm; expected some of default, type" in refused(*choices, "lstm")
    assert "--longer-than chooses users of a log" in refused_here("benchmark", "histories", "--longer-than", 200)
    assert "No such option" in refused("demo", "--nope")
    (tmp_path / "empty.txt").write_text("")
    assert "none of the 0 items" in refused_here("recommend", releases, "--history", tmp_path / "empty.txt")
    assert not out.exists()


def test_an_engine_that_the_gate_refuses_is_one_line_and_exit_status_3(shop: Path, tmp_path: Path) -> None:
    out, limits = tmp_path / "releases", gate(tmp_path, max_relative_error=1e-9)
    given = ("optimize", shop / "checkpoint", "--features", shop / "features", "--out", out, "--config", limits)
    result = recsys(*given, check=False)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (3, "", 1), result.stderr
    assert result.stderr.startswith("recsys: release refused, nothing published: relative error 0.00")
    assert [place.name for place in out.iterdir()] == ["evaluations.jsonl"]  # the gate looked at the test set


def test_a_damaged_manifest_is_refused_by_every_reader(shop: Path, tmp_path: Path) -> None:
    for name in ("features", "checkpoint"):
        folder = shutil.copytree(shop / name, tmp_path / name)
        (folder / "manifest.json").write_text("{}")
    assert "damaged manifest" in refused("train", tmp_path / "features", "--out", tmp_path / "out")
    assert "damaged manifest" in refused(
        "optimize", tmp_path / "checkpoint", "--features", shop / "features", "--out", tmp_path / "out"
    )


def test_evaluating_on_other_features_is_refused_with_both_digests(shop: Path, tmp_path: Path) -> None:
    recsys("features", "build", shop / "log.csv.gz", "--min-count", 3, "--out", tmp_path / "other")
    digests = [artifact.read_manifest(folder).digest[:12] for folder in (shop / "features", tmp_path / "other")]
    message = refused("evaluate", shop / "releases", "--features", tmp_path / "other")
    assert all(digest in message for digest in digests)


@pytest.mark.slow
def test_nightly_publishes_a_refitted_release(shop: Path) -> None:
    state = shop / "nightly"
    limits = ("--config", gate(shop, max_relative_error=1e-9))
    night = ("nightly", shop / "log.csv.gz", "--state", state, "--recipe", shop / "tiny.toml")
    assert recsys(*night, *limits, check=False).returncode == 3
    said = recsys(*night, *limits, "--force").stdout
    folder = artifact.resolve_release(state / "releases")
    manifest = artifact.verify(folder, "release")
    marks = manifest.metrics["forced_past_gate"]
    assert marks[0].startswith("before the cut: relative error 0.00")
    assert any(mark.startswith("relative error 0.00") for mark in marks)
    assert "gate: undecided" in said and f"FORCED past the gate: {marks[0]}" in said
    assert manifest.metrics["fitted_on"] == "all events"
    assert manifest.metrics["evaluation_before_refit"]["protocol"] == "time"
    assert "would leak" in refused("evaluate", folder, "--features", state / "gate" / "features")
    again = (*night, "--force", "--json")
    first, second = (json.loads(recsys(*again, way).stdout) for way in ("--start", "--from-scratch"))
    assert (first["started"], first["why_from_scratch"], first["form"]) == (True, None, "model")
    assert (second["started"], second["why_from_scratch"]) == (False, "asked to")


@pytest.mark.slow
def test_benchmark_accuracy_goes_from_a_raw_file_to_figures(shop: Path) -> None:
    command = (
        "benchmark", "accuracy", shop / "log.csv.gz", "--protocol", "last-out", "--recipe", shop / "tiny.toml",
        "--out", shop / "accuracy", "--seeds", 2,
    )  # fmt: skip
    values = json.loads(recsys(*command, "--json").stdout)
    assert set(values["seconds"]) >= {"features", "train", "optimize"}
    assert values["protocol"] == "last-out"
    low, high = sorted(values["seeds"]["ndcg@10"]["values"])
    assert low < high
    assert json.loads(recsys(*command, "--json").stdout) == values
    assert "± over 2 seeds" in recsys(*command).stdout
    assert "accuracy.json: a run with another log" in refused("benchmark", "accuracy", shop / "x.csv", *command[3:])


def test_options_stand_over_the_file_and_the_file_over_defaults(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("optimize.build.run", lambda settings, *_args, **_options: asked.append(settings) or sys.exit())
    file = tmp_path / "settings.toml"
    file.write_text('[optimize]\nbits = 4\n[optimize.tensorrt]\nworkspace_mib = 256\nactivations = "int8"\n')
    for options in ([], ["--plan", "fp16"], ["--bits", "32"]):
        CliRunner().invoke(optimize_app, ["c", "--features", "f", "--out", "r", "--config", str(file), *options])
    assert [each.bits for each in asked] == [4, 4, 32]
    assert {(each.tensorrt.workspace_mib, each.tensorrt.activations) for each in asked} == {(256, "int8")}
    assert asked[1].tensorrt.precision == "fp16"


def test_an_interrupted_command_is_one_line_and_exit_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("features.verify.run", interrupted)
    monkeypatch.setattr(sys, "argv", ["recsys", "features", "verify", "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "recsys: interrupted\n")
