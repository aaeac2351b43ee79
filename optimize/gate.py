"""The gate: a release whose engine answers worse than its reference is not published."""

from dataclasses import dataclass

from optimize.config import GateConfig
from optimize.report import FidelityReport, MetricLoss
from recsys.contracts.errors import GateError
from recsys.evaluation.statistics import LEAST_DIFFERENT


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reasons to refuse, none if the release may go out, and what was decided by."""

    reasons: list[str]
    basis: str


def verdict(report: FidelityReport, config: GateConfig) -> Verdict:
    """Decide by output error, and by the intervals of recall@10 and NDCG@10 or, where they are undecided, list overlap.

    A loss is within the limit where its interval, of at least `min_users` held-out users and `LEAST_DIFFERENT` whose
    lists score differently, ends below it. It is beyond the limit where its interval begins above it; or, of as many
    users, above 0 while its estimate is beyond the limit.
    """
    reasons, undecided = _error(report, config), []
    num_users = report.num_held_out_users
    if num_users < config.min_users:
        undecided.append(f"at least {config.min_users:,} needed")
    for name, measured in (("recall@10", report.recall10), ("NDCG@10", report.ndcg10)):
        if measured is None:
            undecided.append(f"{name} not measured")
        elif _is_beyond(measured, num_users, config):
            reasons.append(
                f"{name} lost {measured.loss:.2%} ({measured.low:.2%} … {measured.high:.2%}) by the engine, "
                f"at most {config.max_loss:.2%} allowed"
            )
        elif not measured.high <= config.max_loss:  # true for nan
            undecided.append(
                f"{name} lost {measured.low:.2%} … {measured.high:.2%}, at most {config.max_loss:.2%} allowed"
            )
        elif num_users >= config.min_users and measured.num_different < LEAST_DIFFERENT:
            undecided.append(f"{name} differs for {measured.num_different} of them, at least {LEAST_DIFFERENT} needed")
    if not undecided:
        return Verdict(reasons, f"loss of recall@10 and NDCG@10 on {num_users:,} held-out users")
    basis = (
        f"undecided by {num_users:,} held-out users ({'; '.join(undecided)}): judged by output error and list overlap, "
        f"{report.top10_overlap:.4f} of the top 10, at least {config.min_top10_overlap} needed"
    )
    return Verdict(reasons + _overlap(report, config), basis)


def needs_more_users(report: FidelityReport, config: GateConfig) -> bool:
    """Whether held-out users were looked at who do not say on which side of the limit a loss is."""
    losses = [measured for measured in (report.recall10, report.ndcg10) if measured is not None]
    return any(
        measured.low <= config.max_loss
        and (measured.high > config.max_loss or 0 < measured.num_different < LEAST_DIFFERENT)
        for measured in losses
    )


def check(decided: Verdict) -> None:
    """Refuse.

    Raises:
        GateError: with every reason in one line.
    """
    if decided.reasons:
        raise GateError(f"release refused, nothing published: {'; '.join(decided.reasons)}; use --bits 32 or --force")


def _is_beyond(measured: MetricLoss, num_users: int, config: GateConfig) -> bool:
    is_lost = num_users >= config.min_users and measured.num_different >= LEAST_DIFFERENT and measured.low > 0
    return measured.low > config.max_loss or (is_lost and measured.loss > config.max_loss)


def _error(report: FidelityReport, config: GateConfig) -> list[str]:
    errors = {"relative error": report.relative_error, "relative error after appends": report.appended_error}
    return [
        f"{name} {error:.3g}, at most {config.max_relative_error} allowed"
        for name, error in errors.items()
        if error is not None and not error <= config.max_relative_error  # true for nan
    ]


def _overlap(report: FidelityReport, config: GateConfig) -> list[str]:
    if report.top10_overlap >= config.min_top10_overlap:
        return []
    return [f"top-10 overlap {report.top10_overlap:.3f}, at least {config.min_top10_overlap} expected"]
