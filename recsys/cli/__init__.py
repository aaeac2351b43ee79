"""The command line. Each verb imports its stage when it is called, calls its `run`, and prints a short summary."""

import gc
import os
import sys

import typer

from recsys.cli.benchmark import benchmark_app
from recsys.cli.data import features_app, store_app
from recsys.cli.experiment import experiment_app
from recsys.cli.optimize import optimize_app
from recsys.cli.verbs import verbs_app
from recsys.contracts.errors import RecsysError

app = typer.Typer(name="recsys", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(verbs_app)
app.add_typer(optimize_app, name="optimize")
app.add_typer(features_app, name="features")
app.add_typer(store_app, name="store")
app.add_typer(experiment_app, name="experiment")
app.add_typer(benchmark_app, name="benchmark")

_KEEP_MEMORY = "dirty_decay_ms:5000,muzzy_decay_ms:5000,oversize_threshold:0"
"""polars gives memory back that was free for half a second, large pieces at once, and its next batch takes it again:
a tenth of a build."""

_COLLECT_AFTER = 10_000
"""Objects made before the garbage collector looks for cycles, 700 otherwise: a library's import makes them by tens
of thousands to stay, and looking was a tenth of start-up."""
_INTERRUPTED = 130
"""Status of a command that was stopped by Ctrl-C."""


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and its exit status."""
    os.environ.setdefault("_RJEM_MALLOC_CONF", _KEEP_MEMORY)  # polars reads it where a verb imports it
    gc.set_threshold(_COLLECT_AFTER)
    try:
        status = app(standalone_mode=False)
    except RecsysError as error:
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("interrupted", _INTERRUPTED)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 2)
    except typer.TyperException as error:
        _fail(f"{error.format_message()} (see --help)", 2)
    if status == _INTERRUPTED:
        _fail("interrupted", _INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    print(f"recsys: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(status)
