"""How the health of a monitored section is shown: the asset it belongs to, and its checks."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.monitoring.alerts import Condition
from recovery_pipelines.orchestration.controls import asset_key
from recovery_pipelines.plan import Plan

VIEWS = {
    "system_metrics": "system_metrics",
    "service_metrics": "service_metrics",
    "application_metrics": "application_metrics",
    "service_checks": "health_status",
    "dependency_checks": "dependency_status",
}
"""The asset that shows each section."""


def check_results(
    plan: Plan, section: str, found: Sequence[Condition]
) -> list[dg.AssetCheckEvaluation]:
    """`measured`: is it measured at all; `healthy`: did everything that was looked at hold."""
    measured, *others = found
    failed = [condition for condition in others if condition.states[-1] == "failed"]
    unknown = [condition for condition in others if condition.states[-1] == "unknown"]
    blind = measured.states[-1] != "ok"
    proven = not blind and len(others) > len(unknown)
    lines = [f"{condition.name}: {condition.detail}" for condition in [*failed, *unknown]]
    verdicts = {
        "measured": ("FAIL" if blind else "PASS", measured.detail),
        "healthy": (
            "FAIL" if failed else "PASS" if proven and not unknown else "UNVERIFIED",
            "\n".join(lines) or (f"{len(others)} hold" if proven else "nothing was checked"),
        ),
    }
    return [
        dg.AssetCheckEvaluation(
            asset_key=asset_key(plan, VIEWS[section]),
            check_name=name,
            passed=verdict == "PASS",
            severity=dg.AssetCheckSeverity.ERROR
            if verdict == "FAIL"
            else dg.AssetCheckSeverity.WARN,
            metadata={"verdict": verdict, "found": dg.MetadataValue.text(text)},
        )
        for name, (verdict, text) in verdicts.items()
    ]
