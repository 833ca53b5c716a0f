"""The steps of a scenario on services or networks: one asset for each, under the seed's name."""

from collections.abc import Callable, Iterator, Sequence

import dagster as dg
import pandas as pd

from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.drills.scenarios import scenario_of
from recovery_pipelines.orchestration.repositories import repository_key
from recovery_pipelines.orchestration.shards import shard_key
from recovery_pipelines.orchestration.stages import (
    check_results,
    check_specs,
    open_stage,
    stage_options,
    table,
)
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.repositories import RepositoryTarget
from recovery_pipelines.services.stack import picture


def build(spec: DrillSpec) -> Sequence[dg.AssetsDefinition]:
    """One asset per step, in order; the checks are on the last."""
    scenario = scenario_of(spec)
    names = list(scenario.steps)
    checks = [*spec.scenario.validation_criteria.names, *scenario.checks]
    return [
        _asset(spec, step, scenario.steps[step], before, checks if step == names[-1] else [])
        for before, step in zip([None, *names], names, strict=False)
    ]


def _asset(
    spec: DrillSpec,
    step: str,
    carry_out: Callable[[DrillRun], pd.DataFrame],
    before: str | None,
    checks: list[str],
) -> dg.AssetsDefinition:
    what = (carry_out.__doc__ or "").strip().split("\n\n")[0]

    @dg.asset(
        **stage_options(spec, step, what),
        deps=[dg.AssetKey([spec.name, before])] if before else _sources(spec),
        check_specs=check_specs(spec, step, checks),
    )
    def scenario_step(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[pd.DataFrame]]:
        with open_stage(context, spec, step) as run:
            found = carry_out(run)
        results = table(pd.DataFrame(run.checks)) if checks else None
        yield dg.MaterializeResult(
            value=found,
            check_results=check_results(context, run, checks),
            metadata={
                "dagster/row_count": len(found),
                "rows": table(found),
                **_picture(found),
                **(
                    {"checks": results, "canaries": table(pd.DataFrame(run.canaries))}
                    if results
                    else {}
                ),
            },
        )

    return scenario_step


def _sources(spec: DrillSpec) -> list[dg.AssetKey]:
    """What an audit reads."""
    if spec.shards:
        return [shard_key(spec)]
    return [repository_key(spec)] if isinstance(spec.target, RepositoryTarget) else []


def _picture(found: pd.DataFrame) -> dict[str, dg.MarkdownMetadataValue]:
    """The dependency graph, if the step ranked services."""
    if "falls_with_it" not in found:
        return {}
    return {"dependencies": dg.MetadataValue.md(f"```\n{picture(found)}\n```")}
