"""Effects of the plan's keys that every group of scenarios has; see test_plan."""

from collections.abc import Callable
from pathlib import Path

from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.failure import tell_failure
from recovery_pipelines.plan import DrillSpec
from tests.plans import MONTH, make_plan

Effect = Callable[..., None]
SpecOf = Callable[..., DrillSpec]


def effect_criteria(spec_of: SpecOf, group: str, criteria: str, kept: str, left_out: str) -> Effect:
    """A criterion is a check of the drill if the plan names it, and only then."""

    def effect(tmp_path: Path, *_: object) -> None:
        def names(**changes: object) -> set[str]:
            spec = spec_of(tmp_path, **changes)
            graph = build_definitions(spec.plan).resolve_asset_graph()
            return {k.name for k in graph.asset_check_keys if k.asset_key.path[0] == spec.name}

        key = f"{_prefix(group)}__scenarios__0__validation_criteria__{criteria}"
        assert left_out in names()
        assert kept in names(**{key: [kept]})
        assert left_out not in names(**{key: [kept]})

    return effect


def effect_schedule(group: str, **target: object) -> Effect:
    def effect(tmp_path: Path, *_: object) -> None:
        for value, cron in (
            ("monthly", "0 3 1 * *"),
            ("30 4 2 * *", "30 4 2 * *"),
            ("manual", None),
        ):
            key = f"{_prefix(group)}__automation__schedule"
            plan = make_plan(tmp_path, **{key: value} | target)
            schedules = {s.name: s.cron_schedule for s in build_definitions(plan).schedules or []}
            assert schedules.get(f"{group}_schedule") == cron

    return effect


def effect_notification(spec_of: SpecOf, group: str) -> Effect:
    def effect(tmp_path: Path, *_: object) -> None:
        spec = spec_of(
            tmp_path, **{f"{_prefix(group)}__automation__notification": ["stakeholders"]}
        )
        tell_failure(spec, MONTH, "run", "because", [])
        assert "stakeholders" in (tmp_path / "data" / "notifications.jsonl").read_text()

    return effect


def _prefix(group: str) -> str:
    return f"test_framework__test_scenarios__{group}"
