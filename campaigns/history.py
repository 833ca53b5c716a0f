"""A real repository to work on: a full backup and increments, with the truth about each generation.

It lies in the sandbox of a drill, so that recoveries go through the drill's own code.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from recovery_pipelines import manifest
from recovery_pipelines.checks import CRITERIA, RecoveredState, capture_facts, examine, read_facts
from recovery_pipelines.dataset import build_dataset, change_dataset
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.engines.base import Snapshot
from recovery_pipelines.matrix.truth import Truth, look
from recovery_pipelines.plan import DrillSpec, Plan, parse_plan
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.verdict import CheckResult

ENGINES = ("tar", "restic")
MONTH = "2026-11-01"
SHIPPED_PLAN = Path(__file__).parent.parent / "recovery.yaml"
_SIZE_BYTES = 1_000_000


@dataclass
class History:
    """What was backed up, and what is known about it."""

    run: DrillRun
    snapshots: pd.DataFrame
    """As the stage `incremental_backups` returns it."""
    ledger: list[Snapshot]
    truths: list[Truth]

    @property
    def newest(self) -> int:
        return len(self.ledger) - 1

    @property
    def pristine(self) -> Tree:
        """A copy of the newest generation."""
        return self.run.sandbox.tree("pristine")

    def examine(self, tree: Tree, generation: int) -> RecoveredState:
        """`tree` as the drill's criteria look at it, when it should be that generation."""
        return examine(
            tree,
            self.run.manifest_path(f"generation-{generation}"),
            self.run.manifest_path("examined"),
            read_facts(self.run.manifest_path(f"facts-{generation}")),
        )


@contextmanager
def open_history(
    home: Path, engine_name: str, seed: int, with_links: Mapping[bytes, bytes] | None = None
) -> Iterator[History]:
    """Synthetic data of this seed and symbolic links (path to target), backed up four times."""
    spec = make_plan(home, engine_name, seed).drills()[0]
    with open_drill(spec, MONTH, new_run_id(f"{engine_name}-{seed}")) as run:
        build_dataset(run.live, size_bytes=_SIZE_BYTES, seed=seed)
        for path, target in (with_links or {}).items():
            run.live.symlink(target, path)
        engine = run.engine
        engine.init()
        ledger: list[Snapshot] = []
        truths: list[Truth] = []
        for generation in range(run.newest_generation + 1):
            if generation:
                change_dataset(run.live, seed=1000 * seed + generation)
            truths.append(look(run.live.path))
            entries = run.manifest_path(f"generation-{generation}")
            manifest.capture(run.live.path, entries)
            capture_facts(run.live, entries, run.manifest_path(f"facts-{generation}"))
            ledger.append(engine.backup(run.live.path, ledger[-1] if ledger else None))
        rows = [{"generation": number, **asdict(each)} for number, each in enumerate(ledger)]
        yield History(run, pd.DataFrame(rows), ledger, truths)


def make_plan(home: Path, engine_name: str, seed: int, **criteria: list[str]) -> Plan:
    """The plan of `plan_text`."""
    text = plan_text(home, engine_name, seed, **criteria)
    return parse_plan(text, name=SHIPPED_PLAN.name, folder=home)


def plan_text(home: Path, engine_name: str, seed: int, **criteria: list[str]) -> str:
    """The shipped plan on 1 MB of data in `home`; `criteria` instead of all if given."""
    content: dict[str, Any] = yaml.safe_load(SHIPPED_PLAN.read_text(encoding="utf-8"))
    content["data_home"] = str(home.absolute())
    content["targets"] = {
        "test_dataset": {
            "dataset": {"size": f"{_SIZE_BYTES // 1_000_000}MB", "seed": seed},
            "engines": [engine_name],
        }
    }
    if criteria:
        scenarios = content["test_framework"]["test_scenarios"]["data_recovery"]["scenarios"]
        for scenario in scenarios:
            scenario["validation_criteria"] = criteria
    return yaml.safe_dump(content)


def services_plan_text(home: Path) -> str:
    """The shipped plan with its targets of services alone, in `home`."""
    content: dict[str, Any] = yaml.safe_load(SHIPPED_PLAN.read_text(encoding="utf-8"))
    content["data_home"] = str(home.absolute())
    del content["targets"]["test_dataset"]
    return yaml.safe_dump(content)


def drill_of(plan: Plan, drill: str) -> DrillSpec:
    """The plan's drill of this name."""
    return next(spec for spec in plan.drills() if spec.name == drill)


def new_run_id(what: str) -> str:
    """A run that ended is sealed, so each needs an id of its own."""
    return f"{what}-{secrets.token_hex(4)}"


def verdict_columns(results: list[CheckResult]) -> dict[str, str]:
    """Criterion to verdict, one column each."""
    assert [result.name for result in results] == list(CRITERIA)
    return {result.name: str(result.verdict) for result in results}
