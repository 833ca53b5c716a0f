"""Monitoring: the state of everything that is measured, the days' aggregates, what was unusual in
them, and retention."""

import time
from collections.abc import Iterator
from datetime import date

import dagster as dg

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring import rollup
from recovery_pipelines.monitoring.alerts import conditions
from recovery_pipelines.monitoring.anomalies import SHOWN_DAYS, WARM_UP_POINTS, find_anomalies
from recovery_pipelines.monitoring.picture import picture, picture_of_events
from recovery_pipelines.monitoring.status import section_table
from recovery_pipelines.orchestration.controls import asset_key
from recovery_pipelines.orchestration.health import VIEWS, check_results
from recovery_pipelines.orchestration.partitions import DAYS
from recovery_pipelines.orchestration.stages import numbers, table
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.monitoring import Monitoring

GROUP = "monitoring"
AGGREGATES = "metric_aggregates"
ANOMALIES = "metric_anomalies"
RETENTION = "metric_retention"
_SHOWN_SECONDS = 24 * 3600


def build(plan: Plan, monitoring: Monitoring) -> list[dg.AssetsDefinition]:
    """One asset per section, the aggregates of each day, what was unusual, and the retention."""
    views = [_view(plan, monitoring, section) for section in VIEWS]
    return [*views, _aggregates(plan), _anomalies(plan, monitoring), _retention(plan, monitoring)]


def _view(plan: Plan, monitoring: Monitoring, section: str) -> dg.AssetsDefinition:
    home, key = plan.data_home, asset_key(plan, VIEWS[section])

    @dg.asset(
        key=key,
        group_name=GROUP,
        check_specs=[
            dg.AssetCheckSpec("measured", asset=key, description="Monitoring is not blind."),
            dg.AssetCheckSpec("healthy", asset=key, description="Checks and limits hold."),
        ],
        description=f"The last day of {section}, measured every "
        f"{monitoring.interval_seconds(section)} s.",
        code_version="1",
    )
    def view() -> Iterator[dg.MaterializeResult[None]]:
        now = time.time()
        shown, newest = section_table(home, section, now - _SHOWN_SECONDS, now)
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": int(shown["samples"].sum()),
                **numbers(newest),
                "last_day": table(shown),
                **{
                    metric: _image(metric, image)
                    for metric, image in picture(home, section, now - _SHOWN_SECONDS, now).items()
                },
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=result.check_name,
                    passed=result.passed,
                    severity=result.severity,
                    metadata=result.metadata,
                )
                for result in check_results(
                    plan, section, conditions(home, monitoring, section, now)
                )
            ],
        )

    return view


def _image(name: str, png: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{png})")


def _aggregates(plan: Plan) -> dg.AssetsDefinition:
    home, key = plan.data_home, asset_key(plan, AGGREGATES)

    @dg.asset(
        key=key,
        group_name=GROUP,
        partitions_def=DAYS,
        kinds={"parquet"},
        check_specs=[
            dg.AssetCheckSpec(
                "aggregates_equal_raw",
                asset=key,
                blocking=True,
                partitions_def=DAYS,
                description="The 5-minute aggregates follow from the raw samples.",
            )
        ],
        description="A finished day: raw samples and 5-minute aggregates as Parquet.",
        code_version="1",
    )
    def metric_aggregates(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None]]:
        day = date.fromisoformat(context.partition_key)
        try:
            made = rollup.roll_up(home, day, time.time())
        except RecoveryError as error:
            raise dg.Failure(str(error)) from None
        wrong = rollup.differences(home, day)
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(made),
                "samples": float(made["count"].sum()),
                "missing": int(made["missing"].sum()),
                "path": dg.MetadataValue.path(str(rollup.aggregated_path(home, day))),
                "bytes": rollup.aggregated_path(home, day).stat().st_size,
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="aggregates_equal_raw",
                    passed=not wrong,
                    metadata={
                        "expected": f"{len(made)} aggregates as computed from the raw samples",
                        "found": dg.MetadataValue.text("\n".join(wrong[:20]) or "the same"),
                    },
                )
            ],
        )

    return metric_aggregates


def _anomalies(plan: Plan, monitoring: Monitoring) -> dg.AssetsDefinition:
    home, key = plan.data_home, asset_key(plan, ANOMALIES)

    @dg.asset(
        key=key,
        group_name=GROUP,
        deps=[
            dg.AssetDep(asset_key(plan, AGGREGATES), partition_mapping=dg.LastPartitionMapping())
        ],
        check_specs=[
            dg.AssetCheckSpec(
                "within_alert_budget",
                asset=key,
                description="No more events than about one per series and month, which is chance.",
            ),
            dg.AssetCheckSpec(
                "no_unusual_value_over_its_limit",
                asset=key,
                description="Nothing was both unusual and above a limit of the plan.",
            ),
        ],
        description=f"Unusual 5-minute values of {SHOWN_DAYS} days, one event per episode. "
        f"A series with fewer than {WARM_UP_POINTS} values has only its limits.",
        code_version="1",
    )
    def metric_anomalies() -> Iterator[dg.MaterializeResult[None]]:
        found = find_anomalies(home, monitoring, time.time())
        over_limit = found.events[found.events["over_limit"].astype(bool)]
        image = picture_of_events(found)
        yield dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(found.events),
                "series_judged": found.judged,
                "series_warming_up": found.warming_up,
                "expected_by_chance": found.expected_by_chance,
                "events": table(found.events),
                **({"worst": _image("worst", image)} if image else {}),
            },
            check_results=[
                _judged(
                    "within_alert_budget",
                    found.judged,
                    len(found.events),
                    wrong=found.over_budget,
                    expected=f"about {found.expected_by_chance:.1f}, the rate of false events",
                    severity=dg.AssetCheckSeverity.WARN,
                ),
                _judged(
                    "no_unusual_value_over_its_limit",
                    found.judged,
                    len(over_limit),
                    wrong=len(over_limit) > 0,
                    expected="none",
                    severity=dg.AssetCheckSeverity.ERROR,
                ),
            ],
        )

    return metric_anomalies


def _judged(
    name: str,
    series: int,
    count: int,
    *,
    wrong: bool,
    expected: str,
    severity: dg.AssetCheckSeverity,
) -> dg.AssetCheckResult:
    """What `count` events in so many judged series mean; without a series, nothing."""
    verdict = "UNVERIFIED" if not series else "FAIL" if wrong else "PASS"
    return dg.AssetCheckResult(
        check_name=name,
        passed=verdict == "PASS",
        severity=severity if series else dg.AssetCheckSeverity.WARN,
        metadata={
            "verdict": verdict,
            "expected": expected,
            "found": f"{count} in {series} series",
        },
    )


def _retention(plan: Plan, monitoring: Monitoring) -> dg.AssetsDefinition:
    home, key = plan.data_home, asset_key(plan, RETENTION)
    retention = monitoring.metrics_collection.system_metrics.retention

    @dg.asset(
        key=key,
        group_name=GROUP,
        deps=[
            dg.AssetDep(asset_key(plan, AGGREGATES), partition_mapping=dg.LastPartitionMapping())
        ],
        check_specs=[
            dg.AssetCheckSpec(
                "retention_kept",
                asset=key,
                description="What is too old is gone, what is not is there.",
            )
        ],
        description="Makes one file of each month's aggregates. Removes raw data older than "
        f"{retention.raw_data.days} days, aggregates older than {retention.aggregated.days} days.",
        code_version="1",
    )
    def metric_retention() -> Iterator[dg.MaterializeResult[None]]:
        now = time.time()
        before = rollup.kept_days(home)
        pruned = rollup.prune(home, retention, now)
        months = rollup.compact(home, now)
        wrong = rollup.retention_problems(home, retention, before, now)
        yield dg.MaterializeResult(
            metadata={
                "removed": len(pruned.removed),
                "removed_files": dg.MetadataValue.text("\n".join(pruned.removed) or "none"),
                "months_made_one_file": ", ".join(months) or "none",
                "stopped_by": pruned.stopped_by or "nothing",
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="retention_kept",
                    passed=not wrong and not pruned.stopped_by,
                    metadata={
                        "found": dg.MetadataValue.text(
                            "\n".join([*wrong, pruned.stopped_by or ""]).strip() or "kept"
                        )
                    },
                )
            ],
        )

    return metric_retention
