"""The gate: a release whose engine answers worse than its reference is not published."""

from optimize.config import GateConfig
from optimize.report import FidelityReport
from recsys.contracts.errors import GateError


def verdict(report: FidelityReport, config: GateConfig) -> list[str]:
    """Reasons to refuse, empty if there is none.

    Few held-out users leave recall@10 too noisy to decide; then the overlap of the lists decides.
    """
    reasons = []
    if not report.relative_error < 1:  # also catches nan
        reasons.append(f"relative error {report.relative_error:.3g}, expected below 1")
    loss = report.recall_loss
    if loss is not None and report.num_held_out_users >= config.min_users:
        if loss > config.max_recall_loss:
            reasons.append(f"recall@10 lost {loss:.2%} by the engine, at most {config.max_recall_loss:.2%} allowed")
    elif not report.top10_overlap >= config.min_top10_overlap:
        reasons.append(f"top-10 overlap {report.top10_overlap:.3f}, at least {config.min_top10_overlap} expected")
    return reasons


def check(report: FidelityReport, config: GateConfig) -> None:
    """Refuse.

    Raises:
        GateError: with every reason in one line.
    """
    reasons = verdict(report, config)
    if reasons:
        raise GateError(f"release refused, nothing published: {'; '.join(reasons)}; use --bits 32 or --force")
