"""Monitoring: the state of everything that is measured, the days' aggregates, and retention."""

import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring import rollup
from recovery_pipelines.monitoring.alerts import conditions
from recovery_pipelines.monitoring.picture import picture
from recovery_pipelines.monitoring.status import section_table
from recovery_pipelines.orchestration.health import VIEWS, check_results
from recovery_pipelines.orchestration.partitions import DAYS
from recovery_pipelines.orchestration.stages import numbers, table
from recovery_pipelines.plan.monitoring import Monitoring

GROUP = "monitoring"
AGGREGATES = "metric_aggregates"
RETENTION = "metric_retention"
_SHOWN_SECONDS = 24 * 3600


def build(home: Path, monitoring: Monitoring) -> list[dg.AssetsDefinition]:
    """One asset per section, the aggregates of each day, and the retention."""
    views = [_view(home, monitoring, section) for section in VIEWS]
    return [*views, _aggregates(home), _retention(home, monitoring)]


def _view(home: Path, monitoring: Monitoring, section: str) -> dg.AssetsDefinition:
    name = VIEWS[section]

    @dg.asset(
        name=name,
        group_name=GROUP,
        check_specs=[
            dg.AssetCheckSpec("measured", asset=name, description="Monitoring is not blind."),
            dg.AssetCheckSpec("healthy", asset=name, description="Checks and limits hold."),
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
                    metric: dg.MetadataValue.md(f"![{metric}](data:image/png;base64,{image})")
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
                for result in check_results(section, conditions(home, monitoring, section, now))
            ],
        )

    return view


def _aggregates(home: Path) -> dg.AssetsDefinition:
    @dg.asset(
        name=AGGREGATES,
        group_name=GROUP,
        partitions_def=DAYS,
        kinds={"parquet"},
        check_specs=[
            dg.AssetCheckSpec(
                "aggregates_equal_raw",
                asset=AGGREGATES,
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


def _retention(home: Path, monitoring: Monitoring) -> dg.AssetsDefinition:
    retention = monitoring.metrics_collection.system_metrics.retention

    @dg.asset(
        name=RETENTION,
        group_name=GROUP,
        deps=[dg.AssetDep(AGGREGATES, partition_mapping=dg.LastPartitionMapping())],
        check_specs=[
            dg.AssetCheckSpec(
                "retention_kept",
                asset=RETENTION,
                description="What is too old is gone, what is not is there.",
            )
        ],
        description=f"Removes raw data older than {retention.raw_data.days} days and aggregates "
        f"older than {retention.aggregated.days} days.",
        code_version="1",
    )
    def metric_retention() -> Iterator[dg.MaterializeResult[None]]:
        now = time.time()
        before = rollup.kept_days(home)
        pruned = rollup.prune(home, retention, now)
        wrong = rollup.retention_problems(home, retention, before, now)
        yield dg.MaterializeResult(
            metadata={
                "removed": len(pruned.removed),
                "removed_files": dg.MetadataValue.text("\n".join(pruned.removed) or "none"),
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
