"""Secrets that are recognised wherever they turn up: they turn up nowhere.

Routes by which a secret reaches us, or a tool or an error that we handle, and six notations. A
process of its own audits a repository through Dagster, fails, notifies, measures and reports; then
everything that it wrote and said, and the arguments of all its children, are searched.
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from recovery_pipelines import secrecy
from recovery_pipelines.cli import recovery
from recovery_pipelines.errors import PlanError
from recovery_pipelines.plan import load_plan
from recovery_pipelines.secrecy import forms, masked

ROUTES = (
    "REPOSITORY_PASSWORD",
    "TOOL_VARIABLE",
    "SMTP_USERNAME",
    "SMTP_PASSWORD",
    "WEBHOOK",
    "APPRISE",
    "DATABASE",
    "CACHE",
    "UNRELATED_VARIABLE",
)

PLAN = """
data_home: home
smtp:
  host: 127.0.0.1
  port: 1
  security: ssl
  sender: a@example.org
  username: env:SMTP_USERNAME
  password: env:SMTP_PASSWORD
teams:
  admin_team:
    - email: [b@example.org]
    - webhook: env:WEBHOOK
    - apprise: env:APPRISE
    - log: true
test_framework:
  test_execution:
    preparation:
      notifications: {start: [admin_team], completion: [admin_team]}
targets:
  mine:
    repository:
      restic: rest:http://127.0.0.1:1/x
      password: env:REPOSITORY_PASSWORD
      environment: [TOOL_VARIABLE]
    verify_against: {command: [env]}
"""
TOOL = """#!{python}
import json, os, sys
from recovery_pipelines.secrecy import forms
given = sys.stdin.read()
if "version" in sys.argv:
    print("restic 0.14.0")
elif "ls" in sys.argv:
    print(json.dumps({{"path": "/data", "type": "dir"}}))
elif "snapshots" in sys.argv:
    print(json.dumps([dict(id="a" * 64, short_id="aaaaaaaa", time="2026-11-01T10:00:00Z",
                           paths=["/data"], hostname="team")]))
else:
    for secret in (given, os.environ["TOOL_VARIABLE"]):
        print("cannot log in with", *sorted(forms(secret)), file=sys.stderr)
    sys.exit(1)
"""
DRIVER = """
import os, sys
import dagster as dg
from click.testing import CliRunner
from recovery_pipelines import build_definitions
from recovery_pipelines.cli import recovery
from recovery_pipelines.monitoring.dependencies import _check
from recovery_pipelines.plan.monitoring import Dependency
with dg.DagsterInstance.get() as instance:
    job = build_definitions("recovery.yaml").get_job_def("repository_audit_mine_restic")
    job.execute_in_process(instance=instance, partition_key="2026-11-01", raise_on_error=False)
for name, kind in (("DATABASE", "database"), ("CACHE", "cache")):
    print(_check(kind, "connectivity", Dependency(address="env:" + name)))
months = ["--from", "2026-11", "--to", "2026-11"]
for words in (["report"], ["notifications"], ["evidence", "bundle", "-o", "all.zip", *months],
              ["evidence", "verify"], ["plan", "check"]):
    result = CliRunner().invoke(recovery, words)
    print(words, result.exit_code, result.output)
"""


def secret_of(route: str) -> str:
    """Such that its notations differ."""
    return f"{route.lower()}-\u00fc\"'\\/?& %+9"


class Witness(threading.Thread):
    """Notes the arguments of every process of a session."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.seen, self.done = session, set[str](), threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        if os.getsid(int(entry.name)) == self.session:
                            self.seen.add((entry / "cmdline").read_text(errors="replace"))
                    except OSError:
                        continue
            time.sleep(0.01)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What was written and said, by where."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "bin").mkdir()
    (folder / "dagster").mkdir()
    tool = folder / "bin" / "restic"
    tool.write_text(TOOL.format(python=sys.executable))
    tool.chmod(0o755)
    (folder / "recovery.yaml").write_text(PLAN)
    environment = os.environ | {
        **{route: secret_of(route) for route in ROUTES},
        "WEBHOOK": f"http://127.0.0.1:1/{quote(secret_of('WEBHOOK'))}",
        "APPRISE": f"json://user:{quote(secret_of('APPRISE'), safe='')}@127.0.0.1:1",
        "DATABASE": f"postgresql://u:{quote(secret_of('DATABASE'), safe='')}@127.0.0.1:1/x",
        "CACHE": f"redis://u:{quote(secret_of('CACHE'), safe='')}@127.0.0.1:1/0",
        "DAGSTER_HOME": str(folder / "dagster"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "RECOVERY_PLAN": str(folder / "recovery.yaml"),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    witness = Witness(process.pid)
    witness.start()
    said = process.communicate()[0].decode(errors="replace")
    witness.done.set()
    witness.join()
    found = {"console": said, "arguments": "\n".join(witness.seen)}
    for path in folder.rglob("*"):
        if path.is_file() and path != tool:
            found[str(path.relative_to(folder))] = path.read_bytes().decode(
                errors="surrogateescape"
            )
    yield found


def test_the_audit_was_made_and_told(traces: dict[str, str]) -> None:
    """Else nothing could have leaked."""
    (record,) = [json.loads(text) for name, text in traces.items() if name.endswith("record.json")]
    assert record["verdict"] == "ERROR", record["messages"]
    assert "cannot log in with *** ***" in str(record["messages"])
    assert "setpriv" in traces["arguments"] and "restic" in traces["arguments"]
    assert any(name.endswith(".html") for name in traces)
    assert any(name.endswith("receipts.jsonl") for name in traces)
    assert any(name.endswith(".db") for name in traces)


@pytest.mark.parametrize("route", ROUTES)
def test_no_secret_is_found_anywhere(route: str, traces: dict[str, str]) -> None:
    hits = [
        (place, form)
        for place, text in traces.items()
        for form in forms(secret_of(route))
        if form in text
    ]
    assert hits == []


def test_all_notations_are_masked() -> None:
    secret = secret_of("X")
    assert len(forms(secret)) >= 6
    text = " ".join(forms(secret))
    assert set(masked(text, [secret]).split()) == {"***"}
    assert masked("a word", ["a", ""]) == "a word"


@pytest.mark.parametrize(
    "line",
    [
        'password: "hunter2-hunter2',
        "password: *hunter2-hunter2",
        "password: !hunter2-hunter2 x",
        "password: hunter2-hunter2",
        "password: {hunter2-hunter2",
        "restic: rest:https://me:hunter2-hunter2@backups/x",
        "password: env:hunter2-hunter2",
        "environment: [hunter2-hunter2]",
        "? [hunter2-hunter2]\n      : x",
    ],
)
def test_a_mistake_beside_a_secret_does_not_print_it(line: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(f"targets:\n  mine:\n    repository:\n      {line}\n")
    with pytest.raises(PlanError) as caught:
        load_plan(tmp_path / "plan.yaml")
    assert "hunter2" not in str(caught.value)
    shown = CliRunner().invoke(recovery, ["plan", "check", "--plan", str(tmp_path / "plan.yaml")])
    assert "hunter2" not in shown.output


def test_no_core_file_is_left() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        secrecy.forbid_core_files()
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
