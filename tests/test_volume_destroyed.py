"""The volume is lost: what backups bring back is compared, and damaged backups are found out."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recovery_pipelines.databases.base import differences
from recovery_pipelines.drills import volume_destroyed as steps
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.drills.system import system_of
from recovery_pipelines.engines.postgres import segments
from recovery_pipelines.errors import EngineError, MissingCapability
from recovery_pipelines.namespaces import require_namespaces
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.tools import find_tool, postgres_tool
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH
from tests.stack_effects import RECOVERIES, SERVICES, spec_of


def sequence(last: int, *, called: bool = True, ahead: int = 32, step: int = 1) -> dict[str, str]:
    return {"sequence s": json.dumps(["1 1 9 f", step, last, called, ahead])}


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ({"rows t": "2 rows, 5"}, {"rows t": "2 rows, 5"}, True),
        ({"rows t": "2 rows, 5"}, {"rows t": "2 rows, 6"}, False),
        ({"index i": "x"}, {}, False),
        ({}, {"function f": "x"}, False),
        (sequence(10), sequence(10), True),
        (sequence(10), sequence(42), True),  # logged in advance
        (sequence(10), sequence(43), False),
        (sequence(10), sequence(9), False),
        (sequence(10), sequence(10, called=False), False),
        (sequence(10), sequence(10, step=2), False),
        (sequence(-10, step=-2), sequence(-12, step=-2), True),
        (sequence(-10, step=-2), sequence(-8, step=-2), False),
    ],
)
def test_differences(expected: dict[str, str], found: dict[str, str], same: bool) -> None:
    assert (not differences(expected, found)) is same


def test_segments_are_counted_over_the_end_of_a_log() -> None:
    names = segments("0000000100000000000000FE", "000000010000000100000001", 16 << 20)
    assert [name[8:] for name in names] == [
        "00000000000000FE",
        "00000000000000FF",
        "0000000100000000",
        "0000000100000001",
    ]
    with pytest.raises(EngineError, match="timelines"):
        segments("000000010000000000000001", "000000020000000000000002", 16 << 20)


def small_spec(folder: Path, settings: dict[str, str] | None = None) -> DrillSpec:
    """A drill on a database alone, whose volume is destroyed."""
    try:
        require_namespaces()
        postgres_tool("postgres")
        find_tool("pgbackrest")
    except MissingCapability as error:
        pytest.skip(str(error))
    database = {"kind": "postgres", "volume_may_lose_seconds": 60, "settings": settings or {}}
    return spec_of(folder, **{SERVICES: {"database": database}, RECOVERIES: ["volume_destroyed"]})


def _archived(repository: Path) -> list[Path]:
    return sorted(repository.glob("archive/database/*/*/*-*"))


def _lose_the_last_segment(repository: Path) -> None:
    _archived(repository)[-1].unlink()


def _lose_a_segment_before_the_last_backup(repository: Path) -> None:
    _archived(repository)[-4].unlink()


def _flip_a_bit_of_the_last_segment(repository: Path) -> None:
    _flip(_archived(repository)[-1])


def _flip_a_bit_of_the_backup(repository: Path) -> None:
    files = (repository / "backup/database").glob("*F/bundle/*")
    _flip(max(files, key=lambda path: path.stat().st_size))


def _edit_a_manifest(repository: Path) -> None:
    _flip(max((repository / "backup/database").glob("*I/backup.manifest")))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path], None], ...] = (
    _lose_the_last_segment,
    _lose_a_segment_before_the_last_backup,
    _flip_a_bit_of_the_last_segment,
    _flip_a_bit_of_the_backup,
    _edit_a_manifest,
)


@contextmanager
def damaged(repository: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """The repository with a damage, for a while."""
    saved = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    damage(repository)
    yield
    for path, content in saved.items():
        path.write_bytes(content)
        os.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)


def test_damaged_backups_are_found_out_and_sound_ones_restore(tmp_path: Path) -> None:
    """One loss, recovered from first without the last segment of WAL, then from sound backups."""
    with open_drill(small_spec(tmp_path), MONTH, "run") as run:
        steps.shutdown_all_services(run)
        steps.power_off_simulation(run)
        repository = run.sandbox.tree("backups").path / "database/repository"
        with damaged(repository, _lose_the_last_segment):
            steps.initiate_recovery(run)
        verdicts = {check.name: check.verdict for check in run.checks}
        assert not run.published
        assert "recovery ended before configured recovery target" in run.messages[0]
        assert verdicts["backups_complete"] is verdicts["database_identical"] is Verdict.FAIL
        (database,) = steps._backups_of(run).databases
        for damage in DAMAGES:
            with damaged(repository, damage), pytest.raises(EngineError) as told:
                database.engine.full_check(database.snapshots, database.segment)
            assert "pgbackrest info" not in str(told.value), (damage, told.value)
        system_of(run).machine.end()
        run.checks = []
        steps.initiate_recovery(run)
        steps.validate_restoration(run)
        bad = [check for check in run.checks if check.verdict is not Verdict.PASS]
        assert run.published and not bad, bad


def test_a_store_that_comes_back_empty_is_found_out(tmp_path: Path) -> None:
    """Its backup succeeds, and all that is lost is younger than the seconds it may lose."""
    cache = {
        "kind": "redis",
        "volume_may_lose_seconds": 3600,
        "settings": {"appendonly": "no"},
    }
    try:
        require_namespaces()
        find_tool("restic")
        find_tool("redis-server")
    except MissingCapability as error:
        pytest.skip(str(error))
    spec = spec_of(tmp_path, **{SERVICES: {"cache": cache}, RECOVERIES: ["volume_destroyed"]})
    record = carry_out_steps(spec, MONTH, "run")
    found = next(check for check in record.checks if check.name == "checksums_match")
    assert found.verdict is record.verdict is Verdict.FAIL, record.reason
    assert "also from before its backup" in found.found


def test_an_archive_that_keeps_nothing_is_an_error(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, {"archive_command": "/bin/true"})
    with pytest.raises(EngineError), open_drill(spec, MONTH, "run") as run:
        steps.shutdown_all_services(run)
        steps.power_off_simulation(run)
