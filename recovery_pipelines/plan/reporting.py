"""The plan's `reporting`: which numbers are kept, who reads what, for how long."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from recovery_pipelines.plan.base import Name, Strict, unique

Category = Literal["process_improvements", "resource_needs", "risk_mitigation"]
Priority = Literal["critical", "high", "medium", "low"]


class MetricsCollection(Strict):
    """The columns of a drill's metrics row, by the seed's groups."""

    performance_metrics: tuple[Literal["recovery_time", "success_rate"], ...] = (
        "recovery_time",
        "success_rate",
    )
    """`recovery_time`: the columns `recovery_seconds`, `detect_seconds`, `fetch_seconds`,
    `verify_seconds`, `publish_seconds`; `success_rate`: `success`."""
    resource_metrics: tuple[Literal["cpu_usage", "memory_usage", "io_operations"], ...] = (
        "cpu_usage",
        "memory_usage",
        "io_operations",
    )
    """`cpu_usage`: the column `cpu_seconds`; `memory_usage`: `peak_memory_bytes`; `io_operations`:
    `read_operations`, `write_operations`, `read_bytes`, `write_bytes`."""
    error_metrics: tuple[Literal["failure_count", "error_types", "resolution_time"], ...] = (
        "failure_count",
        "error_types",
        "resolution_time",
    )
    """`failure_count`, `error_types`: columns of these names; `resolution_time`:
    `resolution_seconds`, from the damage to the end of validation."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.performance_metrics, *self.resource_metrics, *self.error_metrics))


class MetricsAnalysis(Strict):
    """Which tables are made of all drills together."""

    trend_analysis: bool = True
    """The asset of this name; it forecasts, too."""
    comparison_with_baseline: bool = True
    """The asset `baseline_comparison`."""
    anomaly_detection: bool = True
    """The asset of this name."""


class Metrics(Strict):
    collection: MetricsCollection = MetricsCollection()
    analysis: MetricsAnalysis = MetricsAnalysis()


Retention = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,4}d|forever)$")]
"""How long something is kept: days, such as `365d`, or `forever`."""


def retention_days(retention: Retention) -> float:
    """Days; infinity for `forever`."""
    return float("inf") if retention == "forever" else float(retention.removesuffix("d"))


class TestResults(Strict):
    """The reports that are made of every month, who gets them, how long the bulk is kept."""

    format: tuple[Literal["detailed_report", "executive_summary"], ...] = (
        "detailed_report",
        "executive_summary",
    )
    """The reports that are made of every month."""
    distribution: tuple[Name, ...] = ()
    """Teams that get them, when they are made and each time they say something new."""
    retention: Retention = "365d"
    """How long the bulk of a drill is kept, `365d` or `forever`: tables, journals, the values
    between stages."""

    _no_repeats = field_validator("format", "distribution")(unique)


class Recommendations(Strict):
    """Which recommendations are shown, and in which order."""

    categories: tuple[Category, ...] = (
        "process_improvements",
        "resource_needs",
        "risk_mitigation",
    )
    """The kinds that are shown."""
    prioritization: tuple[Priority, ...] = ("critical", "high", "medium", "low")
    """The priorities that are shown, most urgent first."""

    _no_repeats = field_validator("categories", "prioritization")(unique)


class ReportDocumentation(Strict):
    test_results: TestResults = TestResults()
    recommendations: Recommendations = Recommendations()


class Reporting(Strict):
    metrics: Metrics = Metrics()
    documentation: ReportDocumentation = ReportDocumentation()
