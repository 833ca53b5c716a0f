"""Which part of the evidence answers which demand of which standard."""

from typing import NamedTuple


class Demand(NamedTuple):
    standard: str
    clause: str
    asks: str
    answered_by: str
    not_answered: str


DEMANDS = (
    Demand(
        "SOC 2",
        "A1.2",
        "backup and recovery infrastructure is operated and monitored",
        "`drill`, `started_at`, `ended_at`, `environment`: which backups were drilled, when, where",
        "the operation of the backups themselves",
    ),
    Demand(
        "SOC 2",
        "A1.3",
        "recovery procedures are tested; integrity and completeness of backups too",
        "`verdict`, `checks`, `self_test`, `measured`; `record.json`: expected and found",
        "the revision of the recovery plan after the test",
    ),
    Demand(
        "ISO 27001:2022",
        "A.8.13",
        "backup copies are regularly tested, as the policy says",
        "`drill.month` over the months of the index; `checks`; `snapshots.parquet`",
        "the policy's owner; `plan.sha256` tells which version of the plan was in force",
    ),
    Demand(
        "ISO 27001:2022",
        "A.5.30",
        "ICT readiness is tested against continuity objectives",
        "`objectives` beside `measured.recovery_seconds` and `measured.rpo_seconds`",
        "where the objectives come from",
    ),
    Demand(
        "NIST SP 800-53r5",
        "CP-4",
        "the contingency plan is tested; results are reviewed and corrected",
        "`drill.scenario`, `verdict`, `errors`, `not_tested`; `faults.parquet`; `journal.jsonl`; "
        "sign-offs: `by`, `role`, `documentation`, `sealed_at`",
        "corrective actions outside `documentation.resolutions`",
    ),
    Demand(
        "NIST SP 800-53r5",
        "CP-9",
        "backups are tested for reliability and integrity, by restoring",
        "`checks.backup_verification`, `checks.checksums_match`; `restore.parquet`",
        "the protection of the backups' storage",
    ),
    Demand(
        "NIST SP 800-53r5",
        "CP-10",
        "recovery to a known state within the time set",
        "`checks` (a known state: manifest before against manifest after), "
        "`objectives.rto_seconds`, `measured.recovery_seconds`",
        "the recovery of the production system itself",
    ),
    Demand(
        "CIS Controls v8",
        "11.5",
        "recovery is tested for a sample of assets, quarterly or more often",
        "`drill.target`, `drill.month` over the months of the index",
        "the list of assets in scope",
    ),
    Demand(
        "DORA",
        "Art. 11",
        "continuity plans are tested; results are documented",
        "`drill.scenario`, `verdict`, `not_tested`, the signed entry itself",
        "the report to the management body",
    ),
    Demand(
        "DORA",
        "Art. 12",
        "restores are tested periodically; integrity is checked on recovery",
        "`checks`, `measured`, `drill.month`; `differences.parquet`; `isolation`",
        "physical segregation: a drill restores on its own host",
    ),
)


def table() -> str:
    """The mapping as a Markdown table."""
    rows = [f"| {' | '.join(demand)} |" for demand in DEMANDS]
    head = "| standard | clause | asks | answered by | not answered here |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])
