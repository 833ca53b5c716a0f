"""The scenarios `corruption_recovery` and `incremental_recovery`, stage by stage.

Each function is one stage. What flows between them is small: manifests by path, and tables of
snapshots, faults and restored generations. The trees and the repository stay in the sandbox.
"""

import os
from collections import Counter
from dataclasses import asdict, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from time import monotonic

import pandas as pd

from recovery_pipelines import manifest
from recovery_pipelines.checks import (
    RecoveredState,
    capture_facts,
    check_named,
    examine,
    read_facts,
    run_checks,
    self_test,
    self_test_verdict,
)
from recovery_pipelines.dataset import build_dataset, change_dataset, copy_tree
from recovery_pipelines.drills.metrics import metrics_row
from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.publish import paths_to_restore, publish
from recovery_pipelines.drills.run import STAGED, DrillRun
from recovery_pipelines.engines.base import Snapshot, engine_class
from recovery_pipelines.errors import EngineError, PlanError
from recovery_pipelines.faults.base import Family, InjectedFault, Layer
from recovery_pipelines.faults.catalogue import inject, source_faults
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.targets import Target
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.verdict import CheckResult, Verdict, worst

FAULT_COLUMNS = [field.name for field in dataclass_fields(InjectedFault)]
RESTORE_COLUMNS = [
    "generation",
    "mode",
    "damaged_entries",
    "entries",
    "files",
    "bytes",
    "differences",
    "published",
]


def require_known(spec: DrillSpec) -> None:
    """Raise PlanError if the plan names an engine, check or fault that is not installed."""
    if isinstance(spec.target, STAGED):
        engine_class(spec.engine)
    if not isinstance(spec.target, Target):
        return
    for name in spec.scenario.validation_criteria.names:
        check_named(name)
    kinds = spec.tree.faults.kinds
    unknown = [] if kinds == "all" else sorted(set(kinds) - set(source_faults()))
    if unknown:
        raise PlanError(
            f"targets.{spec.target_name}.faults.kinds: unknown {', '.join(unknown)}; "
            f"known: {', '.join(sorted(source_faults()))}"
        )


def create_test_dataset(run: DrillRun) -> Path:
    """Make or copy the target's data; returns the manifest of generation 0."""
    with run.stage("test_dataset"):
        prepare(run)
        target = run.spec.tree
        if target.dataset:
            left_out = build_dataset(
                run.live, size_bytes=int(target.dataset.size), seed=target.dataset.seed
            )
            run.left_out += [f"{what}: not possible on this machine" for what in left_out]
        elif target.path:
            copy_tree(target.path, run.live, run.remaining_seconds())
        made = _capture(run, run.live, "generation-0")
        run.dataset = {
            "dagster/row_count": made.entries,
            "files": made.files,
            "bytes": made.bytes,
            "unreadable_entries": made.errors,
        }
    return run.manifest_path("generation-0")


def create_incremental_backups(run: DrillRun) -> pd.DataFrame:
    """One full backup and the plan's increments, with changes between them.

    Returns one row per generation: `generation`, the snapshot's fields, and the manifest's
    `entries`, `files`, `bytes`. With `backup_verification` required, the repository is read back
    whole before anything is damaged.
    """
    with run.stage("incremental_backups"):
        engine = run.engine
        engine.init()
        rows: list[dict[str, object]] = []
        snapshots: list[Snapshot] = []
        for generation in range(run.newest_generation + 1):
            if generation:
                change_dataset(run.live, seed=run.seed(f"changes {generation}"))
                _capture(run, run.live, f"generation-{generation}")
            parent = snapshots[-1] if snapshots else None
            with run.working(f"backed up generation {generation}") as working:
                snapshots.append(engine.backup(run.live.path, parent))
                run.snapshots.append(identity(snapshots[-1]))
                working(f"{snapshots[-1].added_bytes:,} bytes added", 1.0)
            if generation in _restored_generations(run):
                path = run.manifest_path(f"generation-{generation}")
                capture_facts(run.live, path, run.manifest_path(f"facts-{generation}"))
            rows.append(
                {
                    "generation": generation,
                    **asdict(snapshots[-1]),
                    **_sizes(run.summaries[f"generation-{generation}"]),
                }
            )
        table = pd.DataFrame(rows)
        run.keep("snapshots", table)
        required = run.spec.plan.test_framework.test_execution.preparation.requirements
        if "backup_verification" in required:
            run.checks.append(verify_backup(run, snapshots))
    return table


def simulate_damage(run: DrillRun) -> pd.DataFrame:
    """Damage the live tree on purpose; returns one row per fault.

    corruption_recovery injects the target's faults. incremental_recovery first makes changes that
    no backup holds, so that loss is real and can be measured, and then loses everything.
    """
    with run.stage("corruption") as wanted:
        faults: list[dict[str, object]] = []
        if wanted and run.spec.scenario.name == "corruption_recovery":
            faults = _inject_faults(run)
        elif wanted:
            run.first_lost_write_at = monotonic()
            change_dataset(run.live, seed=run.seed("changes after the last backup"))
            _capture(run, run.live, "before-loss")
            faults = [total_loss(run.live)]
        run.damaged_at = monotonic() if wanted else None
        run.fault_kinds = dict(Counter(str(fault["kind"]) for fault in faults))
        table = pd.DataFrame(faults, columns=FAULT_COLUMNS)
        run.keep("faults", table)
    return table


def recover(run: DrillRun, snapshots: pd.DataFrame) -> pd.DataFrame:
    """Detect, restore into staging, verify there, and publish only what was verified.

    Returns one row per restored generation: `generation`, `mode`, `damaged_entries`, `entries`,
    `files`, `bytes`, `differences` (before publishing), `published`.
    """
    with run.stage("restore") as wanted:
        rows: list[dict[str, object]] = []
        if wanted:
            made = ledger(snapshots)
            selective = (
                run.spec.scenario.name == "corruption_recovery"
                and run.spec.tree.recovery == "selective"
            )
            rows.append(_recover_newest(run, made[run.newest_generation], selective))
            if run.spec.scenario.name == "incremental_recovery":
                rows.append(_restore_earlier(run, made[run.earlier_generation]))
        table = pd.DataFrame(rows, columns=RESTORE_COLUMNS)
        run.keep("restore", table)
    return table


def validate(run: DrillRun, faults: pd.DataFrame) -> pd.DataFrame:
    """Run every criterion on every recovered tree, and prove that the criteria can fail.

    The results go to `run.checks`; returns the differences found, one row each.
    """
    with run.stage("checksum_validation") as wanted:
        differences: list[pd.DataFrame] = []
        if wanted:
            criteria = run.spec.scenario.validation_criteria.names
            states = {
                generation: _recovered_state(run, generation, tree)
                for generation, tree in _recovered_trees(run)
            }
            for generation, state in states.items():
                run.compared.append(_compared(run, generation, state.comparison))
                table = state.comparison.differences.to_pandas()
                differences.append(table.assign(generation=generation))
            run.checks += merge_results(
                {generation: run_checks(criteria, state) for generation, state in states.items()}
            )
            run.checks.append(_detection_check(run, faults))
            _measure_loss(run)
            scratch = run.sandbox.tree("canaries")
            newest = states[run.newest_generation]
            rows = self_test(criteria, newest, scratch, run.seed("canaries"))
            run.canaries = [asdict(row) for row in rows]
            run.checks.append(self_test_verdict(rows))
        empty = pd.DataFrame(columns=["path", "kind", "expected", "found", "generation"])
        table = pd.concat(differences) if differences else empty
        run.keep("differences", table)
        run.keep("checks", pd.DataFrame([asdict(check) for check in run.checks]))
    return table


def measure(run: DrillRun) -> pd.DataFrame:
    """The drill's metrics row (see `metrics.metrics_row`)."""
    with run.stage("recovery_metrics"):
        run.metrics = metrics_row(run)
    return pd.DataFrame([run.metrics])


# --- backups ----------------------------------------------------------------------------


def _capture(run: DrillRun, tree: Tree, name: str) -> manifest.Summary:
    run.remaining_seconds()
    with run.working(f"captured {name}") as working:
        summary = manifest.capture(
            tree.path,
            run.manifest_path(name),
            progress=lambda at: working(f"{at.files:,} files, {at.bytes:,} bytes", at.fraction),
        )
        working(f"{summary.entries:,} entries, {summary.bytes:,} bytes", 1.0)
    run.summaries[name] = summary
    return summary


def identity(snapshot: Snapshot) -> dict[str, object]:
    return {
        "id": snapshot.snapshot_id,
        "kind": snapshot.kind,
        "created_at": snapshot.created_at.isoformat(),
        **({"position": snapshot.position} if snapshot.position else {}),
    }


def _sizes(summary: manifest.Summary) -> dict[str, object]:
    return {"entries": summary.entries, "files": summary.files, "bytes": summary.bytes}


def _restored_generations(run: DrillRun) -> set[int]:
    if run.spec.scenario.name == "incremental_recovery":
        return {run.newest_generation, run.earlier_generation}
    return {run.newest_generation}


def verify_backup(run: DrillRun, snapshots: list[Snapshot]) -> CheckResult:
    name, expected = "backup_verification", f"{len(snapshots)} snapshots complete and readable"
    try:
        run.engine.full_check(snapshots)
    except EngineError as error:
        return CheckResult(name, Verdict.FAIL, expected, str(error))
    return CheckResult(name, Verdict.PASS, expected, f"{len(snapshots)} snapshots read back whole")


# --- damage -----------------------------------------------------------------------------


def _inject_faults(run: DrillRun) -> list[dict[str, object]]:
    known = source_faults()
    wanted = run.spec.tree.faults
    kinds = list(known) if wanted.kinds == "all" else list(wanted.kinds)
    in_turn = [known[kinds[turn % len(kinds)]] for turn in range(wanted.count or len(kinds))]
    injected = inject(in_turn, run.live, Layer.SOURCE, run.seed("faults"))
    without_place = {fault.kind for fault in in_turn} - {fault.kind for fault in injected}
    run.left_out += [f"fault {kind}: the data has no place for it" for kind in without_place]
    run.journal(event=f"injected {len(injected)} of {len(in_turn)} faults")
    return [asdict(fault) for fault in injected]


def total_loss(live: Tree) -> dict[str, object]:
    """Delete everything in the tree; returns the fault."""
    names = live.listdir()
    live.clear()
    fault = InjectedFault(
        kind="total_loss",
        layer=Layer.SOURCE,
        family=Family.STRUCTURE,
        path=b"",
        detail="everything in the tree is deleted",
        before=f"{len(names)} top-level entries",
        after="0 entries",
        changes_data=True,
        caught_by=("all_files_recovered",),
    )
    return asdict(fault)


# --- recovery ---------------------------------------------------------------------------


def _recover_newest(run: DrillRun, snapshot: Snapshot, selective: bool) -> dict[str, object]:
    expected = run.manifest_path(f"generation-{run.newest_generation}")
    with run.phase("detect"):
        _capture(run, run.live, "damaged")
        damage = _compare(run, expected, run.manifest_path("damaged"))
        run.keep("damage", damage.differences.to_pandas())
    paths = paths_to_restore(expected, damage) if selective else None
    staging = run.sandbox.tree("staging")
    results = _restore_repeatedly(run, snapshot, staging, expected, paths)
    _, summary = results[-1]
    verified = max((each for each, _ in results), key=lambda each: each.differences.num_rows)
    if all(_is_right(each, selective) for each, _ in results):
        with run.phase("publish"):
            publish(staging, run.live, expected, damage if selective else None)
            run.published = True
    else:
        run.note_not_recovered(
            f"{verified.differences.num_rows} differences in what came back, "
            f"{verified.undecided} entries that could not be read"
        )
    run.recovered_files, run.recovered_bytes = summary.files, summary.bytes
    return {
        "generation": run.newest_generation,
        "mode": "selective" if selective else "full",
        "damaged_entries": _entries_in(damage),
        **_sizes(summary),
        "differences": verified.differences.num_rows,
        "published": run.published,
    }


def _is_right(verified: manifest.Comparison, selective: bool) -> bool:
    nothing_wrong = verified.differences.num_rows == 0 and verified.undecided == 0
    return verified.identical or (selective and nothing_wrong)  # perhaps only the root is damaged


def _restore_repeatedly(
    run: DrillRun, snapshot: Snapshot, staging: Tree, expected: Path, paths: list[bytes] | None
) -> list[tuple[manifest.Comparison, manifest.Summary]]:
    """Fetch and verify as often as the plan's `repeats` says, the last time into `staging`.

    Each repeat is verified like the last one, in a tree of its own that is emptied afterwards.
    """
    began, results = monotonic(), []
    for number in range(1, run.spec.tree.repeats + 1):
        is_last = number == run.spec.tree.repeats
        tree = staging if is_last else run.sandbox.tree("repeat")
        with run.repeat():
            results.append(_restore_and_verify(run, snapshot, tree, expected, paths))
        if not is_last:
            tree.clear()
    if len(results) > 1:
        rows = [
            {"phase": phase, "repeat": number, "seconds": seconds}
            for phase, values in run.repeated.items()
            for number, seconds in enumerate(values, 1)
        ]
        run.keep("repeats", pd.DataFrame(rows))
        counted = sum(run.phases[phase] for phase in run.repeated)
        run.repeats_seconds = monotonic() - began - counted
    return results


def _restore_earlier(run: DrillRun, snapshot: Snapshot) -> dict[str, object]:
    expected = run.manifest_path(f"generation-{run.earlier_generation}")
    tree = run.sandbox.tree("earlier")
    verified, summary = _restore_and_verify(run, snapshot, tree, expected, None, prefix="earlier_")
    return {
        "generation": run.earlier_generation,
        "mode": "full",
        "damaged_entries": 0,
        **_sizes(summary),
        "differences": verified.differences.num_rows,
        "published": False,
    }


def _restore_and_verify(
    run: DrillRun,
    snapshot: Snapshot,
    staging: Tree,
    expected: Path,
    paths: list[bytes] | None,
    prefix: str = "",
) -> tuple[manifest.Comparison, manifest.Summary]:
    """Fetch into `staging` and compare it there with what must come back."""
    if paths != []:
        with run.phase(f"{prefix}fetch"):
            run.engine.restore(snapshot, staging.path, paths)
    with run.phase(f"{prefix}verify"):
        found = run.manifest_path(f"{prefix}staging")
        summary = _capture(run, staging, f"{prefix}staging")
        if paths is not None:
            wanted, got = (run.manifest_path(f"{prefix}{name}") for name in ("wanted", "got"))
            manifest.subset(expected, paths, wanted)
            summary = manifest.subset(found, paths, got)
            expected, found = wanted, got
        comparison = _compare(run, expected, found)
    said = "identical" if comparison.identical else f"{comparison.differences.num_rows} differences"
    run.journal(event=f"verified in staging: {said}")
    return comparison, summary


def _compare(run: DrillRun, expected: Path, found: Path) -> manifest.Comparison:
    return manifest.compare(expected, found, ignore=run.spec.target.not_kept)


def _entries_in(comparison: manifest.Comparison) -> int:
    return len(set(comparison.differences.column("path").to_pylist()))


def ledger(snapshots: pd.DataFrame) -> dict[int, Snapshot]:
    fields = [field.name for field in dataclass_fields(Snapshot)]
    rows = snapshots.astype(object).where(snapshots.notna(), None)
    return {
        row["generation"]: Snapshot(**{name: row[name] for name in fields})
        for row in rows.to_dict("records")
    }


# --- validation -------------------------------------------------------------------------


def _recovered_trees(run: DrillRun) -> list[tuple[int, Tree]]:
    trees = [(run.newest_generation, run.live)]
    if run.spec.scenario.name == "incremental_recovery":
        trees.append((run.earlier_generation, run.sandbox.tree("earlier")))
    return trees


def _recovered_state(run: DrillRun, generation: int, tree: Tree) -> RecoveredState:
    run.remaining_seconds()
    checks = run.spec.plan.test_framework.test_execution.validation.automated_checks
    return examine(
        tree,
        run.manifest_path(f"generation-{generation}"),
        run.manifest_path(f"recovered-{generation}"),
        read_facts(run.manifest_path(f"facts-{generation}")),
        aspects=checks.data_integrity,
        not_kept=run.spec.target.not_kept,
    )


def _compared(run: DrillRun, generation: int, comparison: manifest.Comparison) -> dict[str, object]:
    """How much of a generation was compared, for the evidence."""
    entries = run.summaries[f"generation-{generation}"].entries
    return {
        "generation": generation,
        "entries": entries,
        "compared": comparison.entries,
        "undecided": comparison.undecided,
        "not_compared": list(comparison.ignored),
        "is_sample": comparison.entries < entries,
    }


def merge_results(results: dict[int, list[CheckResult]]) -> list[CheckResult]:
    """One result per criterion over all recovered generations."""
    merged = []
    for name_results in zip(*results.values(), strict=True):
        found = "; ".join(
            f"generation {generation}: {result.found}"
            for generation, result in zip(results, name_results, strict=True)
        )
        verdict = worst(result.verdict for result in name_results)
        merged.append(replace(name_results[0], verdict=verdict, found=found))
    return merged


def _detection_check(run: DrillRun, faults: pd.DataFrame) -> CheckResult:
    """Every fault that changed data must show in the comparison made before the recovery."""
    name = "all_faults_detected"
    damaging = faults[faults["changes_data"].astype(bool)].to_dict("records")
    expected = f"{len(damaging)} faults that change data are detected"
    detected = run.folder / "damage.parquet"
    if not damaging or not detected.exists():
        why = (
            "no detection ran" if damaging else "no fault changed data: there was nothing to detect"
        )
        return CheckResult(name, Verdict.UNVERIFIED, expected, why)
    seen = set(pd.read_parquet(detected)["path"])
    missed = [
        f"{fault['kind']} at {os.fsdecode(fault['path'])!r}"
        for fault in damaging
        if not _is_covered(fault["path"], seen)
    ]
    found = "; missed: ".join([f"{len(damaging) - len(missed)} detected", *missed])
    return CheckResult(name, Verdict.INVALID if missed else Verdict.PASS, expected, found)


def _is_covered(path: bytes, seen: set[bytes]) -> bool:
    """Whether a path, or a folder above it, differs (a fault in a folder lost afterwards)."""
    if path == b"" and seen:
        return True
    parts = path.split(b"/")
    return any(b"/".join(parts[:depth]) in seen for depth in range(1, len(parts) + 1))


def _measure_loss(run: DrillRun) -> None:
    """What the recovered data lacks of what was there at the moment of the damage."""
    if run.spec.scenario.name == "incremental_recovery" and run.damaged_at is not None:
        before = run.manifest_path("before-loss")
        after = run.manifest_path(f"recovered-{run.newest_generation}")
        run.lost_entries = _entries_in(_compare(run, before, after))
