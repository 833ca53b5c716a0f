"""Reporting: the month's reports, made when its drills have ended and sent to their teams."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.controls import asset_key
from recovery_pipelines.orchestration.partitions import MONTHS
from recovery_pipelines.plan import DrillSpec, Plan
from recovery_pipelines.reporting.publish import Publication, distribute, write_reports
from recovery_pipelines.reporting.summary import summarize

GROUP = "reporting"
JOB = "reports"

_DESCRIPTIONS = {
    "detailed_report": "Everything about the month: verdicts, checks, objectives, trends, "
    "coverage, what was not tested, evidence. HTML, PDF, Markdown and JSON.",
    "executive_summary": "The month on one page. HTML, PDF, Markdown and JSON.",
}
_METADATA_BYTES = 48_000


def build(
    plan: Plan, specs: Sequence[DrillSpec], analysis: Sequence[dg.AssetsDefinition]
) -> dg.AssetsDefinition:
    """The assets `detailed_report` and `executive_summary`, as far as the plan wants them.

    Both are made in one step, so that the teams get one message.
    """
    drills = [dg.AssetKey([spec.name, "recovery_metrics"]) for spec in specs]
    tables = [asset.key for asset in analysis]

    @dg.multi_asset(
        name="make_reports",
        partitions_def=MONTHS,
        specs=[
            dg.AssetSpec(
                asset_key(plan, name),
                group_name=GROUP,
                deps=[*drills, *tables],
                automation_condition=_when_drills_have_ended(drills),
                kinds={"html", "pdf"},
                description=_DESCRIPTIONS[name],
                code_version="1",
            )
            for name in plan.test_framework.reporting.documentation.test_results.format
        ],
    )
    def reports(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        try:
            publication = write_reports(plan.data_home, plan, context.partition_key)
        except RecoveryError as error:
            raise dg.Failure(str(error)) from None
        for note in publication.notes:
            context.log.warning(note)
        teams = distribute(plan.data_home, plan, publication)
        for name in dict.fromkeys(file.name for file in publication.files):
            metadata = _metadata(publication, name)
            yield dg.MaterializeResult(
                asset_key=asset_key(plan, name),
                metadata={**metadata, "sent_to": ", ".join(teams) or "nobody"},
            )

    return reports


def job(assets: dg.AssetsDefinition) -> Any:
    """Makes the reports of a month anew, and sends them if they changed."""
    return dg.define_asset_job(
        JOB,
        dg.AssetSelection.assets(*assets.keys),
        description="Makes the reports of a month anew, and sends them if they changed.",
        executor_def=dg.in_process_executor,
    )


def _when_drills_have_ended(drills: Sequence[dg.AssetKey]) -> dg.AutomationCondition[Any]:
    """Once for all drills that ran together; the tables of the analysis come first."""
    selection = dg.AssetSelection.assets(*drills)
    failed = dg.AutomationCondition.execution_failed().newly_true()
    ended = (
        dg.AutomationCondition.any_deps_updated().allow(selection)
        | dg.AutomationCondition.any_deps_match(failed).allow(selection)
    ).since_last_handled()
    busy = (
        dg.AutomationCondition.any_deps_in_progress()
        | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.will_be_requested())
        | dg.AutomationCondition.in_progress()
    )
    return (ended & ~busy).with_label("the month's drills have ended")


def _metadata(publication: Publication, name: str) -> dict[str, Any]:
    report = publication.report
    text = next(f.path for f in publication.files if (f.name, f.form) == (name, "md")).read_text()
    metadata: dict[str, Any] = {
        "verdict": str(report.verdict),
        "headline": summarize(report).headline,
        "report": dg.MetadataValue.md(_shortened(text)),
        "drills_proven": sum(drill.proven for drill in report.drills),
        "drills_not_proven": sum(not drill.proven for drill in report.drills)
        + len(report.missing_drills),
    }
    files = [file for file in publication.files if file.name == name]
    metadata |= {file.form: dg.MetadataValue.path(str(file.path)) for file in files}
    metadata |= {f"{file.form}_sha256": file.sha256 for file in files}
    return metadata


def _shortened(text: str) -> str:
    """The report as far as the event log should hold it, cut before a section."""
    if len(text.encode()) <= _METADATA_BYTES:
        return text
    kept = text.encode()[:_METADATA_BYTES].decode(errors="ignore")
    return kept[: kept.rindex("\n## ")] + "\n\n… the files hold the rest"
