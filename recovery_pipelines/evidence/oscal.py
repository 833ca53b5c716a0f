"""Drills as OSCAL assessment results (NIST's JSON for what an assessment found).

One observation and one finding a drill, with the effective verdict. A finding speaks of its drill
alone: whether the control as a whole is satisfied is the assessor's to say.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from recovery_pipelines.evidence.chain import Chain, Entry
from recovery_pipelines.evidence.signoff import Standing, standings_of
from recovery_pipelines.verdict import Verdict

NAME = "oscal-assessment-results.json"
VERSION = "1.1.3"
CONTROLS = ("cp-4", "cp-9.1", "cp-10")
"""NIST SP 800-53r5: plan testing, testing of backups for reliability and integrity, recovery."""

_TARGET = "cp-9.1_smt"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:recovery-pipelines:oscal")


def assessment_results(
    chain: Chain, drills: Sequence[Entry], months: tuple[str, str]
) -> dict[str, Any]:
    """The document as JSON values; the same chain and drills give the same."""
    chosen = {entry.seq for entry in drills}
    standings = [s for s in standings_of(chain) if s.drill.seq in chosen]
    plan = _uuid("plan", chain.head.digest)
    return {
        "assessment-results": {
            "uuid": _uuid("results", chain.head.digest, *months),
            "metadata": {
                "title": f"Recovery drills, {months[0][:7]} to {months[1][:7]}",
                "last-modified": chain.head.predicate["sealed_at"],
                "version": str(chain.head.seq),
                "oscal-version": VERSION,
            },
            "import-ap": {"href": f"#{plan}"},
            "results": [
                {
                    "uuid": _uuid("result", chain.head.digest, *months),
                    "title": "Recovery drills",
                    "description": "Each observation is a signed entry of the chain of evidence.",
                    "start": min(s.drill.predicate["started_at"] for s in standings),
                    "end": max(s.drill.predicate["ended_at"] for s in standings),
                    "reviewed-controls": {
                        "control-selections": [
                            {"include-controls": [{"control-id": name} for name in CONTROLS]}
                        ]
                    },
                    "observations": [_observation(standing) for standing in standings],
                    "findings": [_finding(standing) for standing in standings],
                }
            ],
            "back-matter": {"resources": [_plan_resource(plan, standings)]},
        }
    }


def _observation(standing: Standing) -> dict[str, Any]:
    drill, predicate = standing.drill, standing.drill.predicate
    checks = ", ".join(f"{name} {verdict}" for name, verdict in predicate["checks"].items())
    signed = "; ".join(f"{check.name}: {check.found}" for check in standing.checks)
    return {
        "uuid": _uuid("observation", drill.digest),
        "title": _title(drill),
        "description": f"{predicate['drill']['scenario']} of {predicate['drill']['target']} with "
        f"{predicate['drill']['engine']}: {standing.verdict}. Checks: {checks or 'none'}.",
        "props": [
            {"name": "verdict", "value": str(standing.verdict)},
            {"name": "automated-verdict", "value": str(standing.automated_verdict)},
            {"name": "entry", "value": str(drill.seq)},
            {"name": "entry-sha256", "value": drill.digest},
        ],
        "methods": ["TEST"],
        "relevant-evidence": [
            {"href": drill.folder, "description": "Sealed files of the drill; in this bundle."}
        ],
        "collected": predicate["ended_at"],
        **({"remarks": f"Signed by people: {signed}"} if signed else {}),
    }


def _finding(standing: Standing) -> dict[str, Any]:
    passed = standing.verdict is Verdict.PASS
    return {
        "uuid": _uuid("finding", standing.drill.digest),
        "title": _title(standing.drill),
        "description": f"{standing.verdict}: {standing.verdict.explanation}.",
        "target": {
            "type": "statement-id",
            "target-id": _TARGET,
            "status": {"state": "satisfied" if passed else "not-satisfied"},
        },
        "related-observations": [{"observation-uuid": _uuid("observation", standing.drill.digest)}],
        "remarks": "Of this drill alone, not of the control as a whole.",
    }


def _plan_resource(plan: str, standings: Sequence[Standing]) -> dict[str, Any]:
    versions = {
        f"{known['name']} {known['sha256']}": None
        for standing in standings
        if (known := standing.drill.predicate.get("plan"))
    }
    return {
        "uuid": plan,
        "title": "Plan of the drills",
        "description": "Name and SHA-256 of each version in force: "
        + (", ".join(versions) or "not recorded"),
    }


def _title(drill: Entry) -> str:
    return f"{drill.predicate['drill']['drill']} {drill.month[:7]}"


def _uuid(*parts: str) -> str:
    """Version 5: the same parts give the same."""
    return str(uuid.uuid5(_NAMESPACE, "|".join(parts)))
