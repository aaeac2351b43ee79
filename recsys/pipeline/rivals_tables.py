"""What the benchmarks print that compare models trained alike, or ways to fuse one, on validation."""

from typing import Any

from recsys.evaluation.statistics import LEAST_DIFFERENT
from recsys.pipeline.plain_text import as_text, gap, new_table, paired, setting, trials_text


def choices_table(values: dict[str, Any]) -> str:
    """Accuracy of the default's form and its rivals; what the log has no input for."""
    lines = [f"{name} left out: {why}" for name, why in values["left_out"].items()]
    return "\n".join([_rivals_table(values), *lines])


def forms_table(values: dict[str, Any]) -> str:
    """Every trial, the best first; what each choice led to; the best form against the default's."""
    trials = [{name: row[name] for name in row if name != "problem"} for row in values["trials"]]
    parts = [trials_text(trials, f"{values['data']}: {_size(values)}, one seed, validation only", 170)]
    choices = new_table("trials by choice", "choice", "value", "trials", "best", "median")
    for name, groups in values["choices"].items():
        for value, row in groups.items():
            figures = str(row["num_trials"]), f"{row['best']:.4f}", f"{row['median']:.4f}"
            label = setting(name, {"True": True, "False": False}.get(value, value))
            choices.add_row(name, label, *figures)
    parts.append(as_text(choices))
    parts += [f"trial {row['trial']} ended early: {row['problem']}" for row in values["trials"] if row["problem"]]
    parts += [f"{name} left out: {why}" for name, why in values["left_out"].items()]
    if values["comparison"] is None:
        return "\n".join([*parts, "the default's form is the best trial"])
    whose = "other users than those" if values["comparison"]["on_other_users"] else "the users"
    return "\n".join([*parts, _rivals_table(values["comparison"]), f"other seeds, {whose} of the trials"])


def fusion_table(values: dict[str, Any]) -> str:
    """One line a way to find fusion's weights: what it is worth to other users, and the weights."""
    trainings, splits = len(values["checkpoints"]), values["num_splits"]
    title = f"{values['features']}: {trainings} trainings, {values['num_users']:,} validation users halved {splits} x"
    terms = list(values["ways"][values["reference"]]["weights"])
    table = new_table(title, "", "NDCG@10", "difference", "relative", *(term.replace("_", " ") for term in terms))
    for name, row in values["ways"].items():
        found = row["difference"]
        weights = (f"{row['weights'][term]:.3g}" for term in terms)
        change = f"{found['relative']:+.2%}" if found and found["relative"] is not None else ""
        table.add_row(name, f"{row['ndcg@10']:.4f}", gap(found), change, *weights)
    what = "NDCG@10: the mean of all later events and the next one, of users whose weights were found on others"
    return "\n".join([as_text(table, width=150), what, paired(values["reference"])])


def _rivals_table(values: dict[str, Any]) -> str:
    """One line a rival: what it ranks alone and fused, and the differences to the reference."""
    columns = ["", "NDCG@10", "difference", "recall@10", "fused NDCG@10", "difference", "training s"]
    table = new_table(_compared(values), *columns)
    for name, row in values["rivals"].items():
        alone, fused = _accuracy(row)
        table.add_row(name, *alone, f"{row['recall@10']:.4f}", *fused, f"{row['training_s']:.0f}")
    return "\n".join([as_text(table, width=140), paired(values["reference"])])


def histories_table(values: dict[str, Any]) -> str:
    """One line a way to read a long history: what it ranks, alone and fused, and what it costs."""
    num_longer = values["rivals"][values["reference"]]["longer_than_a_window"]["num_users"]
    columns = ["", "users", "NDCG@10", "difference", f"of the {num_longer:,} longer than a window", "fused NDCG@10"]
    columns += ["difference", "training s", "cold ms", "cold, stored ms", "one more event ms"]
    table = new_table(_compared(values), *columns, "cold MFLOP", "one more event MFLOP", "session kB")
    for name, row in values["rivals"].items():
        alone, fused = _accuracy(row)
        table.add_row(
            name,
            f"{row['num_users']:,}",
            *alone,
            gap(row["longer_than_a_window"]["difference"]),
            *fused,
            f"{row['training_s']:.0f}",
            f"{row['cold_ms']:,.2f}",
            f"{row['cold_stored_ms']:,.2f}",
            f"{row['warm_ms']:,.2f}",
            f"{row['cold_mflop']:,.1f}",
            f"{row['warm_mflop']:,.2f}",
            f"{row['session_kb']:,.1f}",
        )
    costs = f"costs: of the same models for a history of {values['history_of_costs']:,} events, eager torch, one thread"
    lines = [paired(values["reference"]), f"{costs}, sessions in {values['cache']}"]
    if 0 < num_longer < LEAST_DIFFERENT:
        lines.append(f"longer than a window: only {num_longer} users, {LEAST_DIFFERENT} are needed for a verdict")
    return "\n".join([as_text(table, width=260), *lines])


def _accuracy(row: dict[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    """NDCG@10 and its difference to the reference, by the decoder alone and fused."""
    gaps = row["differences"] or {}
    alone, fused = ((f"{row[name]:.4f}", gap(gaps.get(name))) for name in ("ndcg@10", "fused_ndcg@10"))
    return alone, fused


def _compared(values: dict[str, Any]) -> str:
    """What rivals were trained on."""
    seeds = f"{values['num_seeds']} seed{'' if values['num_seeds'] == 1 else 's'}"
    epochs = f" {values['epochs']:g} epochs," if "epochs" in values else ""
    return f"{values['data']}: {_size(values)},{epochs} {seeds}"


def _size(values: dict[str, Any]) -> str:
    return f"{values['num_users']:,} users, {values['num_events']:,} events, windows of {values['window']['size']:,}"
