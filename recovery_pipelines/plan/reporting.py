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
    resource_metrics: tuple[Literal["cpu_usage", "memory_usage", "io_operations"], ...] = (
        "cpu_usage",
        "memory_usage",
        "io_operations",
    )
    error_metrics: tuple[Literal["failure_count", "error_types", "resolution_time"], ...] = (
        "failure_count",
        "error_types",
        "resolution_time",
    )

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.performance_metrics, *self.resource_metrics, *self.error_metrics))


class MetricsAnalysis(Strict):
    """Which tables are made of all drills together."""

    trend_analysis: bool = True
    comparison_with_baseline: bool = True
    anomaly_detection: bool = True


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
    distribution: tuple[Name, ...] = ()
    retention: Retention = "365d"
    """Of tables, journals and the values between stages. Records stay: see `Evidence`."""

    _no_repeats = field_validator("format", "distribution")(unique)


class Recommendations(Strict):
    """Which recommendations are shown, and in which order."""

    categories: tuple[Category, ...] = (
        "process_improvements",
        "resource_needs",
        "risk_mitigation",
    )
    prioritization: tuple[Priority, ...] = ("critical", "high", "medium", "low")
    """Most urgent first."""

    _no_repeats = field_validator("categories", "prioritization")(unique)


class ReportDocumentation(Strict):
    test_results: TestResults = TestResults()
    recommendations: Recommendations = Recommendations()


class Reporting(Strict):
    metrics: Metrics = Metrics()
    documentation: ReportDocumentation = ReportDocumentation()
