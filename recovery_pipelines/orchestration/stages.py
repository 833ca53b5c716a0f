"""What all stage assets share: their place in the graph, their checks, their metadata."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pandas as pd
from pandas.api.types import is_numeric_dtype, is_scalar

from recovery_pipelines.drills.run import DrillRun, stages_of, step_of
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.controls import apply_controls, forbid_retry, pool_of
from recovery_pipelines.orchestration.demands import demand
from recovery_pipelines.orchestration.interrupted import begin
from recovery_pipelines.orchestration.io_manager import HOME_METADATA_KEY, ParquetIOManager
from recovery_pipelines.orchestration.partitions import MONTHS, month_of
from recovery_pipelines.orchestration.resources import DrillsResource
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import CheckResult, Verdict

DRILLS_KEY = "recovery_drills"
PARQUET_KEY = "recovery_parquet"

RESOURCES: Mapping[str, object] = {
    DRILLS_KEY: DrillsResource(),
    PARQUET_KEY: dg.IOManagerDefinition.hardcoded_io_manager(ParquetIOManager()),
}
"""What the stages need. The same objects for all definitions, so that these can be merged."""

_PREVIEW_ROWS = 20
_DECIMALS = 6
_WHOLE_FROM = 1000
"""Larger numbers are shown without decimals."""
_WARNINGS = (Verdict.UNVERIFIED, Verdict.STALE)


def stage_options(spec: DrillSpec, stage: str, what: str) -> dict[str, Any]:
    """The arguments of `@dg.asset` for one stage of one drill."""
    step = step_of(spec, stage)
    return {
        "name": stage,
        "key_prefix": [spec.name],
        "group_name": spec.group,
        "partitions_def": MONTHS,
        "description": f"{what}\n\n{spec.scenario.description} (step `{step}`).",
        "pool": pool_of(spec.plan),
        "required_resource_keys": {DRILLS_KEY},
        "io_manager_key": PARQUET_KEY,
        "metadata": {HOME_METADATA_KEY: str(spec.plan.data_home)},
        "kinds": {"parquet", spec.engine},
        "tags": {"recovery/scenario": spec.scenario.name},
        # Later stages first: a run over several drills finishes one before it opens the next.
        "op_tags": {"dagster/priority": str(stages_of(spec).index(stage))},
        "code_version": "1",
    }


def upstream(spec: DrillSpec, stage: str) -> dg.AssetIn:
    return dg.AssetIn(key=[spec.name, stage])


@contextmanager
def open_stage(
    context: dg.AssetExecutionContext, spec: DrillSpec, stage: str
) -> Iterator[DrillRun]:
    """The drill that this stage belongs to. Errors meant for people reach the UI as such."""
    month = month_of(context.run.tags) or context.partition_key
    if stage == stages_of(spec)[0]:
        begin(context, spec.plan.data_home)
        apply_controls(context, spec)
    try:
        yield context.resources.recovery_drills.stage(spec, month, stage)
    except RecoveryError as error:
        raise dg.Failure(f"{type(error).__name__}: {error}") from None


def check_specs(
    spec: DrillSpec,
    stage: str,
    names: Sequence[str],
    partitions: dg.PartitionsDefinition[str] = MONTHS,
) -> list[dg.AssetCheckSpec]:
    key = dg.AssetKey([spec.name, stage])
    return [
        dg.AssetCheckSpec(
            name, asset=key, description=demand(name), blocking=True, partitions_def=partitions
        )
        for name in names
    ]


def check_results(
    context: dg.AssetExecutionContext, run: DrillRun, names: Sequence[str]
) -> list[dg.AssetCheckResult]:
    """The named checks of `run` as Dagster shows them.

    FAIL and INVALID fail with severity ERROR and block what is downstream; UNVERIFIED and STALE
    warn. A check without a result is UNVERIFIED.
    """
    if run.verdict.is_finding:
        forbid_retry(context)
    by_name = {check.name: check for check in run.checks}
    return [_check_result(context, by_name.get(name), name) for name in names]


def _check_result(
    context: dg.AssetExecutionContext, check: CheckResult | None, name: str
) -> dg.AssetCheckResult:
    check = check or CheckResult(name, Verdict.UNVERIFIED, "the check runs", "it did not run")
    warns = check.verdict in _WARNINGS
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=context.asset_key,
        passed=check.verdict is Verdict.PASS,
        severity=dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR,
        metadata={
            "verdict": str(check.verdict),
            "expected": dg.MetadataValue.text(check.expected),
            "found": dg.MetadataValue.text(check.found),
        },
        description=check.verdict.explanation,
    )


def numbers(row: Mapping[str, object]) -> dict[str, Any]:
    """A row's values as metadata: numbers plot in the UI, the rest is text, None is left out."""
    return {
        name: _number(value) if isinstance(value, bool | int | float) else str(value)
        for name, value in row.items()
        if value is not None and not (isinstance(value, float) and pd.isna(value))
    }


def _number(value: bool | int | float) -> bool | int | float:
    return round(value, _DECIMALS) if isinstance(value, float) else value


def table(frame: pd.DataFrame, columns: Iterable[str] | None = None) -> dg.MetadataValue:
    """The first rows of a frame as a table in the UI."""
    shown = (frame[list(columns)] if columns else frame).head(_PREVIEW_ROWS)
    sides = ["right" if is_numeric_dtype(shown[name]) else "left" for name in shown]
    cells = shown.map(_cell)
    text = (
        cells.to_markdown(index=False, disable_numparse=True, colalign=sides)
        if len(cells)
        else "(no rows)"
    )
    more = len(frame) - _PREVIEW_ROWS
    return dg.MetadataValue.md(f"{text}\n\n… and {more:,} more rows" if more > 0 else text)


def _cell(value: Any) -> Any:
    if isinstance(value, bytes):
        value = (
            os.fsdecode(value)
            .encode("unicode_escape", "surrogateescape")
            .decode("ascii", "replace")
        )
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    if is_scalar(value) and pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= _WHOLE_FROM else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
