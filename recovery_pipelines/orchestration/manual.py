"""Manual verification as Dagster shows it: one asset check, which turns when people sign."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from recovery_pipelines.evidence.signoff import Standing, check_of, standings
from recovery_pipelines.orchestration.partitions import MONTHS
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import CheckResult, Verdict, worst

CHECK = "manual_verification"
LAST_STAGE = "recovery_metrics"


def check_specs(spec: DrillSpec) -> list[dg.AssetCheckSpec]:
    """The check `manual_verification` on a drill's last stage, if the plan asks for it."""
    if not spec.manual_verification.required_checks:
        return []
    description = "UNVERIFIED until each manual check was signed with `recovery signoff`."
    return [
        dg.AssetCheckSpec(CHECK, asset=_key(spec), description=description, partitions_def=MONTHS)
    ]


def check_results(spec: DrillSpec) -> list[dg.AssetCheckResult]:
    """What `check_specs` announces, at the end of the drill: nothing is signed yet."""
    waiting = [check_of(name, ()) for name in spec.manual_verification.required_checks]
    return [
        dg.AssetCheckResult(check_name=CHECK, asset_key=_key(spec), **_shown(spec.name, waiting))
        for _ in check_specs(spec)
    ]


def evaluations(
    home: Path, specs: Sequence[DrillSpec], after_seq: int
) -> tuple[list[dg.AssetCheckEvaluation], int]:
    """How drills stand that were signed after entry `after_seq`, and the newest entry looked at.

    Of each drill and month the newest sealed run counts, as in Dagster's own view of a month.
    """
    every = standings(home)
    newest = {(s.drill.predicate["drill"]["drill"], s.drill.month): s for s in every}
    seq = max([after_seq, *(signed.entry.seq for s in every for signed in s.sign_offs)])
    found = [
        dg.AssetCheckEvaluation(
            asset_key=_key(spec),
            check_name=CHECK,
            partition=month,
            **_shown(spec.name, standing.checks, standing),
        )
        for spec in specs
        for (drill, month), standing in newest.items()
        if drill == spec.name and any(s.entry.seq > after_seq for s in standing.sign_offs)
    ]
    return found, seq


def _key(spec: DrillSpec) -> dg.AssetKey:
    return dg.AssetKey([spec.name, LAST_STAGE])


def _shown(
    drill: str, checks: Sequence[CheckResult], standing: Standing | None = None
) -> dict[str, Any]:
    verdict = worst(check.verdict for check in checks)
    metadata: dict[str, Any] = {
        "verdict": str(verdict),
        **{
            check.name: dg.MetadataValue.text(f"{check.verdict}: {check.found}") for check in checks
        },
        "to_sign": dg.MetadataValue.text(f"recovery signoff {drill} --check … --result … --by …"),
    }
    if standing is not None:
        metadata["drill_verdict"] = str(standing.verdict)
        metadata["automated_verdict"] = str(standing.automated_verdict)
    warns = verdict is Verdict.UNVERIFIED
    return {
        "passed": verdict is Verdict.PASS,
        "severity": dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR,
        "metadata": metadata,
        "description": verdict.explanation,
    }
