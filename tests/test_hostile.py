"""Archives made to do harm change nothing outside the sandbox, however they are restored."""

import io
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from campaigns.hostile import archives, hostile
from recovery_pipelines import tools
from recovery_pipelines.audits.repositories import open_repository
from recovery_pipelines.cli import drill
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.plan import load_plan
from recovery_pipelines.plan.repositories import Repository
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH

WORST = (
    "absolute name over a file",
    "through a chain of links",
    "write through a hard link",
    "PATH_MAX in links",
    "character device",
    "write into a fifo",
    "set-id files",
    "time 2^62",
    "size of 8 exabytes",
    "dump folder renames",
)
"""The campaign takes all."""


def test_nothing_outside_is_touched(tmp_path: Path) -> None:
    rows = list(hostile(tmp_path, WORST, ("audit", "tar")))
    rows += hostile(tmp_path, ["set-id files"], ("rsync", "borg"))
    assert [row for row in rows if row["wrong"]] == []
    assert [row for row in rows if "died" in row["said"]] == []
    assert len(archives(tmp_path)) >= 80


# --- the read-only world ------------------------------------------------------------------


@pytest.mark.skipif(bool(tools.why_not_confined()), reason=tools.why_not_confined())
def test_a_tool_that_restores_can_write_nowhere_else(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    tries = [
        f"echo x > {outside}/new",
        f"ln {tmp_path}/victim {outside}/name",
        f"chmod 777 {outside}",
        f"mount -o remount,bind,rw {outside}" if os.geteuid() else "false",
        "cd .. && echo x > ../../new",
    ]
    (tmp_path / "victim").write_bytes(b"untouched")
    for command in tries:
        done = run_tool(["sh", "-c", command], cwd=inside, writable=[inside])
        assert done.returncode, f"{command}: {done}"
    written = run_tool(
        ["sh", "-c", "echo x > here; echo y > /dev/null"], cwd=inside, writable=[inside]
    )
    assert (written.returncode, (inside / "here").read_bytes()) == (0, b"x\n"), written.complaint
    assert list(outside.iterdir()) == []
    if os.geteuid() == 0:
        made = "mknod null c 1 3 && ! cat null"
        assert run_tool(["sh", "-c", made], cwd=inside, writable=[inside]).returncode == 0


def test_without_namespaces_it_runs_unconfined_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_confinement_complaint", lambda user: "no namespaces here")
    done = run_tool(["sh", "-c", f"echo x > {tmp_path}/new"], writable=[])
    assert done.returncode == 0
    record = audit(tmp_path, "nothing")
    assert record.content["isolation"]["unconfined"] == "no namespaces here"


# --- verdicts -----------------------------------------------------------------------------


def audit(folder: Path, archive: str, **changes: str) -> DrillRecord:
    """The audit of a directory that holds one hostile archive, against live data."""
    live, held = folder / "live", folder / "archives"
    live.mkdir()
    held.mkdir()
    (live / "victim").write_bytes(b"untouched")
    (held / "a.tar").write_bytes(archives(live)[archive])
    plan = folder / "recovery.yaml"
    plan.write_text(
        f"""
data_home: home
targets:
  mine:
    repository: {{directory: archives{changes.get("path", "")}}}
    verify_against: {{live: live}}
    {changes.get("more", "")}
"""
    )
    (spec,) = load_plan(plan).drills()
    return carry_out_steps(spec, MONTH, "run")


def test_a_link_in_the_place_of_the_audited_folder_is_not_the_data(tmp_path: Path) -> None:
    """Else the live data would be compared with themselves."""
    record = audit(tmp_path, "folder is a link", path=", path: out")
    assert record.verdict is Verdict.FAIL, record.reason
    assert [path.name for path in (tmp_path / "live").iterdir()] == ["victim"]


def test_marks_that_are_a_device_do_not_hang(tmp_path: Path) -> None:
    record = audit(tmp_path, "character device", more="marks: zero")
    (found,) = [check.found for check in record.checks if check.name == "marks_are_fresh"]
    assert "it is no file and no directory" in found


def test_names_of_a_listing_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for archive in ("line break", "spaces", "owner with spaces", "time 2^62", "not UTF-8"):
        (tmp_path / "archives" / "a.tar").write_bytes(archives(tmp_path)[archive])
        reader = open_repository(
            Repository(directory=tmp_path / "archives"), tmp_path, lambda: 20.0, {}
        )
        (backup,) = reader.backups()
        contents = reader.contents(backup)
        staging = tmp_path / archive.replace(" ", "-")
        staging.mkdir()
        tree = reader.restore(backup, contents, staging, None)
        found = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
        assert {Path(name) for name in contents.sizes_bytes} == found, archive


# --- dumps that run programs --------------------------------------------------------------

HOSTILE_DUMP = r"""
\! echo x > {there}/new
\! psql -h {there} -p 5432 -c 'drop database team' 2> /mnt/volume/work/said
create table said (line text);
copy said from program 'head -n 1 /mnt/volume/work/said';
copy (select 1) to program '(echo x > {there}/copied); cat > /dev/null';
-- PostgreSQL database dump complete
"""


def test_what_a_dump_runs_changes_nothing_and_reaches_no_server_of_the_host(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    there = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(there))
    there.chmod(0o777)
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps" / "a.sql").write_text(HOSTILE_DUMP.format(there=there))
    (tmp_path / "recovery.yaml").write_text(
        "data_home: home\ntargets:\n  mine:\n    repository: {pg_dump: dumps}\n"
        "    verify_against: {queries: ['select count(*) = 1, min(line) from said']}\n"
    )
    (spec,) = load_plan(tmp_path / "recovery.yaml").drills()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(there / ".s.PGSQL.5432"))
        (there / ".s.PGSQL.5432").chmod(0o777)
        server.listen()
        server.settimeout(0)
        record = carry_out_steps(spec, MONTH, "run")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert record.verdict is Verdict.PASS, record.reason
    (found,) = [check.found for check in record.checks if check.name == "data_match"]
    assert "Connection refused" in found
    assert [path.name for path in there.iterdir()] == [".s.PGSQL.5432"]


# --- names that reach people --------------------------------------------------------------


def test_names_steer_no_terminal_and_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "[red]\x1b[2J<script>alert(1)<|`x`"
    live, held = tmp_path / "live", tmp_path / "archives"
    live.mkdir()
    held.mkdir()
    (live / name).write_bytes(b"right")
    subprocess.run(["tar", "-cf", held / "a.tar", "-C", live, "."], check=True)
    (live / name).write_bytes(b"changed after the backup, unseen")
    os.utime(live / name, (0, 0))
    command = ["sh", "-c", "echo '[/red]' >&2; printf '\\033[2J'; exit 1"]
    (tmp_path / "recovery.yaml").write_text(
        "data_home: home\ntargets:\n  mine:\n    repository: {directory: archives}\n"
        f"    verify_against: {{command: {json.dumps(command)}}}\n"
    )
    (spec,) = load_plan(tmp_path / "recovery.yaml").drills()
    record = carry_out_steps(spec, MONTH, "run")
    assert record.verdict is Verdict.FAIL
    assert "\x1b" not in record.reason
    terminal = io.StringIO()
    monkeypatch.setattr(drill, "console", Console(file=terminal, width=200))
    drill._show(record)
    assert "\x1b" not in terminal.getvalue()
    assert "[/red]" in terminal.getvalue()
