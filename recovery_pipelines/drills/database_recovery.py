"""The data-recovery scenarios on a database, stage by stage; as `data_recovery` on file trees.

The database lives in the sandbox. What it should hold is described row by row at each backup, and
a restored one is opened, read whole and compared before it takes the place of the damaged one.
"""

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from time import monotonic

import pandas as pd

from recovery_pipelines.checks import UNDAMAGED, Canary, self_test_verdict
from recovery_pipelines.databases.base import Contents, Database, differences
from recovery_pipelines.databases.judge import (
    DatabaseState,
    examine,
    judge,
    look_at,
    show_that_they_fail,
)
from recovery_pipelines.databases.opening import faults_of, make_database, open_database
from recovery_pipelines.drills.data_recovery import (
    FAULT_COLUMNS,
    RESTORE_COLUMNS,
    identity,
    ledger,
    merge_results,
    total_loss,
    verify_backup,
)
from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.engines.base import Snapshot, size_bytes
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.verdict import CheckResult, Verdict


@dataclass
class _Live:
    """The database that is damaged and recovered, while it runs, and all that is known of it."""

    database: Database | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    contents: dict[str, Contents] = field(default_factory=dict)
    """By name, such as `generation-0`."""
    states: dict[int, DatabaseState] = field(default_factory=dict)
    """By generation: what came back, as it was looked at last."""

    def stop(self) -> None:
        self.database = None
        self.stack.close()


def create_test_dataset(run: DrillRun) -> Path:
    """Make or take over the database; returns its description (`name`, `what`) as Parquet."""
    with run.stage("test_dataset"):
        prepare(run)
        run.state = live = _Live()
        run.cleanup.callback(live.stop)
        wanted = run.spec.database.database
        _ = run.engine  # a server that archives must find the repository when it is started
        live.database = live.stack.enter_context(
            make_database(
                run.spec.database_kind,
                run.live.path,
                run.sandbox,
                rows=wanted.rows,
                seed=wanted.seed,
                taken_from=wanted.path,
            )
        )
        contents = _describe(run, "generation-0")
        run.dataset = {
            "dagster/row_count": len(contents),
            "bytes": size_bytes(run.live.path),
        }
    return run.manifest_path("generation-0")


def create_incremental_backups(run: DrillRun) -> pd.DataFrame:
    """The first backup and the plan's further ones, with changes between them.

    Returns one row per generation: `generation`, the snapshot's fields, `entries` (described
    things), `bytes` (of the database's files).
    """
    with run.stage("incremental_backups"):
        live = _live(run)
        run.engine.init()
        rows: list[dict[str, object]] = []
        snapshots: list[Snapshot] = []
        for generation in range(run.newest_generation + 1):
            if generation:
                _running(live).change(run.seed(f"changes {generation}"))
                _describe(run, f"generation-{generation}")
            with run.working(f"backed up generation {generation}") as working:
                parent = snapshots[-1] if snapshots else None
                snapshots.append(run.engine.backup(run.live.path, parent))
                run.snapshots.append(identity(snapshots[-1]))
                working(f"{snapshots[-1].added_bytes:,} bytes added", 1.0)
            rows.append(
                {
                    "generation": generation,
                    **asdict(snapshots[-1]),
                    "entries": len(live.contents[f"generation-{generation}"]),
                    "bytes": size_bytes(run.live.path),
                }
            )
        table = pd.DataFrame(rows)
        run.keep("snapshots", table)
        required = run.spec.plan.test_framework.test_execution.preparation.requirements
        if "backup_verification" in required:
            run.checks.append(verify_backup(run, snapshots))
    return table


def simulate_damage(run: DrillRun) -> pd.DataFrame:
    """Damage the running database on purpose; returns one row per fault.

    corruption_recovery does each damage of the kind of database once, through its front door;
    `changes_data` says whether the description then differed. incremental_recovery first makes
    changes that no backup holds, and then loses everything.
    """
    with run.stage("corruption") as wanted:
        faults: list[dict[str, object]] = []
        live = _live(run)
        if wanted and run.spec.scenario.name == "corruption_recovery":
            faults = _inject_faults(run, live)
        elif wanted:
            run.first_lost_write_at = monotonic()
            _running(live).change(run.seed("changes after the last backup"))
            _describe(run, "before-loss")
            live.stop()
            faults = [total_loss(run.live)]
        run.damaged_at = monotonic() if wanted else None
        run.fault_kinds = dict(Counter(str(fault["kind"]) for fault in faults))
        table = pd.DataFrame(faults, columns=FAULT_COLUMNS)
        run.keep("faults", table)
    return table


def recover(run: DrillRun, snapshots: pd.DataFrame) -> pd.DataFrame:
    """Detect, restore into staging, open and compare there, and publish what was verified.

    Returns one row per restored generation, as `data_recovery.recover` does.
    """
    with run.stage("restore") as wanted:
        rows: list[dict[str, object]] = []
        if wanted:
            made = ledger(snapshots)
            rows.append(_recover_newest(run, made[run.newest_generation]))
            if run.spec.scenario.name == "incremental_recovery":
                generation = run.earlier_generation
                tree = run.sandbox.tree("earlier")
                state = _restore(run, made[generation], generation, tree, prefix="earlier_")
                rows.append(_row(generation, tree, state))
        table = pd.DataFrame(rows, columns=RESTORE_COLUMNS)
        run.keep("restore", table)
    return table


def validate(run: DrillRun, faults: pd.DataFrame) -> pd.DataFrame:
    """Run every criterion on every recovered database, and prove that the criteria can fail.

    The results go to `run.checks`; returns the differences found, one row each.
    """
    columns = ["path", "kind", "expected", "found", "generation"]
    table = pd.DataFrame(columns=columns)
    with run.stage("checksum_validation") as wanted:
        if wanted:
            live, newest = _live(run), run.newest_generation
            if run.published:
                expected = live.contents[f"generation-{newest}"]
                live.states[newest] = examine(_running(live), expected)
            criteria = run.spec.scenario.validation_criteria.names
            automated = run.spec.plan.test_framework.test_execution.validation.automated_checks
            results = {
                at: judge(criteria, state, automated.data_integrity)
                for at, state in live.states.items()
            }
            run.checks += merge_results(results)
            run.checks.append(_detection_check(faults))
            run.checks.append(_self_test(run))
            run.compared += [_compared(at, state) for at, state in live.states.items()]
            if before := live.contents.get("before-loss"):
                run.lost_entries = len(differences(before, live.states[newest].found))
            rows = [row for at, state in live.states.items() for row in _differences(at, state)]
            table = pd.DataFrame(rows, columns=columns)
        run.keep("differences", table)
        run.keep("checks", pd.DataFrame([asdict(check) for check in run.checks]))
    return table


def _live(run: DrillRun) -> _Live:
    assert isinstance(run.state, _Live)
    return run.state


def _running(live: _Live) -> Database:
    assert live.database is not None
    return live.database


def _describe(run: DrillRun, name: str) -> Contents:
    run.remaining_seconds()
    live = _live(run)
    with run.working(f"described {name}") as working:
        contents = live.contents[name] = _running(live).describe()
        table = pd.DataFrame(contents.items(), columns=["name", "what"])
        table.to_parquet(run.manifest_path(name), index=False)
        working(f"{len(contents):,} entries", 1.0)
    return contents


def _inject_faults(run: DrillRun, live: _Live) -> list[dict[str, object]]:
    faults = []
    database = _running(live)
    before = database.describe()
    for kind, planned in faults_of(database.kind).items():
        done = planned.inject(database, Random(run.seed(f"fault {kind}")))
        if not done:
            run.left_out.append(f"fault {kind}: the data has no place for it")
            continue
        after = database.describe()
        faults.append(asdict(planned.done(kind, Layer.SOURCE, done, before, after)))
        before = after
    run.journal(event=f"injected {len(faults)} faults")
    return faults


def _recover_newest(run: DrillRun, snapshot: Snapshot) -> dict[str, object]:
    live, newest = _live(run), run.newest_generation
    expected = live.contents[f"generation-{newest}"]
    with run.phase("detect"):
        found = live.database.describe() if live.database else {}
        damage = differences(expected, found)
        run.keep("damage", pd.DataFrame({"path": [name.encode() for name in damage]}))
    staging = run.sandbox.tree("staging")
    state = _restore(run, snapshot, newest, staging)
    if state.is_right:
        with run.phase("publish"):
            live.stop()
            run.live.clear()
            for name in staging.listdir():
                staging.rename(name, name, to=run.live)
            try:
                live.database = live.stack.enter_context(
                    open_database(run.spec.database_kind, run.live.path, run.sandbox)
                )
                run.published = True
            except DatabaseError as error:
                run.note_not_recovered(error)
                live.states[newest] = DatabaseState(expected, {}, f"once published: {error}")
        run.recovered_files = sum(path.is_file() for path in run.live.path.rglob("*"))
        run.recovered_bytes = size_bytes(run.live.path)
    else:
        run.note_not_recovered(state.problem or f"{len(state.differences)} differences")
    row = _row(newest, run.live if run.published else staging, state)
    return row | {"damaged_entries": len(damage), "published": run.published}


def _restore(
    run: DrillRun, snapshot: Snapshot, generation: int, staging: Tree, prefix: str = ""
) -> DatabaseState:
    """Fetch into `staging`, open it there and compare it with what must come back."""
    live = _live(run)
    with run.phase(f"{prefix}fetch"):
        run.engine.restore(snapshot, staging.path)
    with run.phase(f"{prefix}verify"):
        expected = live.contents[f"generation-{generation}"]
        kind = run.spec.database_kind
        state = look_at(kind, staging.path, run.sandbox, expected)
    live.states[generation] = state
    said = state.problem or f"{len(state.differences)} differences"
    run.journal(event=f"verified in staging: {said}")
    return state


def _row(generation: int, tree: Tree, state: DatabaseState) -> dict[str, object]:
    return {
        "generation": generation,
        "mode": "full",
        "damaged_entries": 0,
        "entries": len(state.found),
        "files": sum(path.is_file() for path in tree.path.rglob("*")),
        "bytes": size_bytes(tree.path),
        "differences": len(state.differences),
        "published": False,
    }


def _detection_check(faults: pd.DataFrame) -> CheckResult:
    """Every damage must have shown in a description made right after it."""
    name, expected = "all_faults_detected", f"{len(faults)} faults are detected"
    if faults.empty:
        return CheckResult(name, Verdict.UNVERIFIED, expected, "no fault was injected")
    unseen = faults[~faults["changes_data"].astype(bool)]["kind"].tolist()
    found = "; missed: ".join([f"{len(faults) - len(unseen)} detected", *unseen])
    return CheckResult(name, Verdict.INVALID if unseen else Verdict.PASS, expected, found)


def _self_test(run: DrillRun) -> CheckResult:
    names = [
        name
        for name in run.spec.scenario.validation_criteria.names
        if name not in run.spec.scenario.validation_criteria.additional  # type: ignore[attr-defined]
    ]
    kind, scratch = run.spec.database_kind, run.sandbox.tree("canaries")
    shown = show_that_they_fail(kind, names, run.sandbox, scratch, run.seed("canaries"))
    rows = [
        Canary(
            each.criterion,
            each.kind or UNDAMAGED,
            b"",
            each.result.verdict is (Verdict.FAIL if each.kind else Verdict.PASS),
            f"{each.result.verdict}, {each.result.found}"[:300],
        )
        for each in shown
    ]
    run.canaries = [asdict(row) for row in rows]
    return self_test_verdict(rows)


def _compared(generation: int, state: DatabaseState) -> dict[str, object]:
    return {
        "generation": generation,
        "entries": len(state.expected),
        "compared": len(state.expected) if state.found else 0,
        "undecided": 0,
        "not_compared": [],
        "is_sample": not state.found,
    }


def _differences(generation: int, state: DatabaseState) -> list[dict[str, object]]:
    return [
        {
            "path": name.encode(),
            "kind": told if told in ("missing", "not in the source") else "changed",
            "expected": state.expected.get(name),
            "found": state.found.get(name),
            "generation": generation,
        }
        for name, told in state.differences.items()
    ]
