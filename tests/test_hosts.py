"""Several hosts on one Dagster: whose is what, which runs have died, and the files for it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import dagster as dg
import pytest
import yaml
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.workspace.config_schema import process_workspace_config
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job

from recovery_pipelines.build import build_definitions
from recovery_pipelines.orchestration.controls import pool_of, run_tags
from recovery_pipelines.orchestration.interrupted import (
    begin,
    fail_killed_runs,
    fail_unbegun_runs,
    is_last_attempt,
    missed_retries,
)
from recovery_pipelines.sandbox import claim_run, ended_runs
from tests.plans import MONTH, make_plan

ROOT = Path(__file__).parent.parent
CLAIM = """
import sys, time
from pathlib import Path
from recovery_pipelines.sandbox import claim_run
for run_id in sys.argv[2:]:
    claim_run(Path(sys.argv[1]), run_id)
print("claimed", flush=True)
time.sleep(600)
"""


def test_no_asset_and_no_drill_of_two_hosts_is_taken_for_the_others(tmp_path: Path) -> None:
    plans = [make_plan(tmp_path / host, host=host) for host in ("alpha", "beta")]
    graphs = [build_definitions(plan).resolve_asset_graph() for plan in plans]
    for keys in (
        [graph.get_all_asset_keys() for graph in graphs],
        [g.asset_check_keys for g in graphs],
    ):
        assert keys[0] and not keys[0] & keys[1]
    drills = [{spec.name for spec in plan.drills()} for plan in plans]
    assert not drills[0] & drills[1]
    tags = [run_tags([plan.drills()[0]]) for plan in plans]
    for tag in ("recovery/drill", "recovery/target"):
        assert tags[0][tag] != tags[1][tag], "each host has limits of its own"
    assert pool_of(plans[0]) != pool_of(plans[1])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test({"run_retries": {"enabled": True}}) as instance:
        yield instance


def started(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> str:
    @dg.job
    def drill() -> None: ...

    return instance.create_run_for_job(drill, status=status).run_id


def carry_out(home: Path, *run_ids: str) -> subprocess.Popen[bytes]:
    """A process that carries out these runs, one after the other, and does not end."""
    argv = [sys.executable, "-c", CLAIM, str(home), *run_ids]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"claimed\n"
    return process


def statuses(instance: dg.DagsterInstance, *run_ids: str) -> list[str]:
    return [instance.get_run_by_id(run_id).status.value for run_id in run_ids]  # type: ignore[union-attr]


def test_only_a_run_whose_process_is_gone_has_failed(
    home: Path, instance: dg.DagsterInstance
) -> None:
    on = dg.DagsterRunStatus.STARTED
    killed, living, elsewhere = (started(instance, on) for _ in range(3))
    canceling = started(instance, dg.DagsterRunStatus.CANCELING)
    done = started(instance, dg.DagsterRunStatus.SUCCESS)
    victims = [carry_out(home, run_id) for run_id in (killed, canceling, done)]
    other = carry_out(home, living)
    assert fail_killed_runs(home, instance) == []
    for victim in victims:
        victim.kill()
        victim.communicate()
    assert fail_killed_runs(home, instance) == [killed]
    assert fail_killed_runs(home, instance) == [], "said once"
    ended = statuses(instance, killed, living, elsewhere, canceling, done)
    assert ended == ["FAILURE", "STARTED", "STARTED", "CANCELING", "SUCCESS"]
    assert ended_runs(home) == [canceling], "run monitoring ends it; the others are forgotten"
    other.kill()
    other.communicate()
    assert fail_killed_runs(home, instance) == [living]


def test_a_process_has_the_claim_of_its_last_run_only(home: Path) -> None:
    process = carry_out(home, "first", "second", "second")
    assert [path.name for path in (home / "runs").iterdir()] == ["second"]
    assert ended_runs(home) == []
    process.kill()
    process.communicate()
    assert ended_runs(home) == ["second"]


def test_a_claim_does_not_live_on_in_what_the_process_started(home: Path) -> None:
    claim_run(home, "ours")
    child = carry_out(home, "theirs")
    claim_run(home, "next")
    assert ended_runs(home) == []
    child.kill()
    child.communicate()
    assert ended_runs(home) == ["theirs"]


def test_processes_that_open_a_new_home_at_once_all_can(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from recovery_pipelines.orchestration.instance import open_instance, prepare_home
print("ready", flush=True)
sys.stdin.read()
folder = Path(sys.argv[1])
with open_instance(prepare_home(folder, folder), "recovery_drill") as instance:
    print(len(instance.event_log_storage.get_pool_limits()))
"""
    argv = [sys.executable, "-c", program, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()  # type: ignore[union-attr]
    assert [process.stdout.read() for process in processes] == ["1\n"] * 4  # type: ignore[union-attr]
    assert [process.wait() for process in processes] == [0] * 4


class Alpha:
    """The drills of one host, and runs of the first one in an instance."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        plan = make_plan(folder, host="alpha")
        self.home = plan.data_home
        self.specs = plan.drills()
        self.instance = instance
        self.job = build_definitions(plan).resolve_job_def(self.specs[0].name)

    def run(
        self,
        status: dg.DagsterRunStatus,
        location: str = "alpha",
        retry_of: str | None = None,
        **tags: str,
    ) -> str:
        repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "repository")
        run = self.instance.create_run_for_job(
            self.job,
            status=status,
            remote_job_origin=RemoteJobOrigin(repository, self.job.name),
            job_code_origin=None,
            root_run_id=retry_of,
            parent_run_id=retry_of,
            tags={
                "dagster/partition": MONTH,
                **run_tags(self.specs[:1]),
                **{f"dagster/{name}": value for name, value in tags.items()},
            },
        )
        return run.run_id

    def missed(self) -> list[dg.RunRequest]:
        return missed_retries(self.instance, self.specs, [self.job.name])


@pytest.fixture
def alpha(tmp_path: Path, instance: dg.DagsterInstance) -> Alpha:
    return Alpha(tmp_path, instance)


def test_a_run_that_died_before_its_claim_fails_after_a_while_and_may_not_begin(
    alpha: Alpha, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = dg.DagsterRunStatus.STARTING
    mine, claimed, of_beta = alpha.run(new), alpha.run(new), alpha.run(new, "beta")
    for run_id in (mine, claimed, of_beta):
        begins = DagsterEvent(DagsterEventType.RUN_START.value, alpha.job.name)
        alpha.instance.report_dagster_event(begins, run_id)
    process = carry_out(alpha.home, claimed)
    assert fail_unbegun_runs(alpha.home, alpha.instance, alpha.specs, "alpha") == []
    later = time.time() + 181
    monkeypatch.setattr("time.time", lambda: later)
    assert fail_unbegun_runs(alpha.home, alpha.instance, alpha.specs, "alpha") == [mine]
    process.kill()
    process.communicate()
    context = dg.build_asset_context(instance=alpha.instance)
    monkeypatch.setattr(type(context), "run_id", mine)
    with pytest.raises(dg.Failure, match="too late"):
        begin(context, alpha.home)


@pytest.mark.parametrize(
    ("tags", "retried", "last"),
    [
        ({"max_retries": "1"}, False, False),
        ({"max_retries": "1"}, True, False),
        ({"max_retries": "1", "will_retry": "false"}, True, False),
        ({"max_retries": "0"}, False, True),
        ({"failure_reason": "STEP_FAILURE", "retry_on_asset_or_op_failure": "false"}, False, True),
    ],
    ids=["not yet said", "retried", "said when its retry was there", "no retries", "a finding"],
)
def test_only_the_last_attempt_is_a_failure(
    alpha: Alpha, tags: dict[str, str], retried: bool, last: bool
) -> None:
    def is_last(run_id: str) -> bool:
        run = alpha.instance.get_run_by_id(run_id)
        assert run
        return is_last_attempt(alpha.instance, run)

    failed = dg.DagsterRunStatus.FAILURE
    run_id = alpha.run(failed, **tags)
    if retried:
        group = {"root_run_id": run_id, "parent_run_id": run_id, "retry_number": "1"}
        retry = alpha.run(failed, retry_of=run_id, **group, **tags)
        assert is_last(retry)
    assert is_last(run_id) is last


def test_a_retry_that_could_not_start_is_made_up_for_once(alpha: Alpha) -> None:
    failed = dg.DagsterRunStatus.FAILURE
    run_id = alpha.run(failed, will_retry="false", failure_reason="START_TIMEOUT")
    (request,) = alpha.missed()
    assert (request.job_name, request.partition_key) == (alpha.job.name, MONTH)
    assert request.run_key == alpha.missed()[0].run_key == f"retry of {run_id}"
    assert alpha.specs[0].controls.retry_attempts == 2
    assert request.tags["dagster/max_retries"] == "1", "one attempt less"
    alpha.run(dg.DagsterRunStatus.STARTED)
    assert alpha.missed() == [], "somebody has started it again"


@pytest.mark.parametrize(
    "tags",
    [
        {"will_retry": "true"},
        {"will_retry": "false", "max_retries": "0"},
        {
            "will_retry": "false",
            "failure_reason": "STEP_FAILURE",
            "retry_on_asset_or_op_failure": "false",
        },
    ],
    ids=["Dagster retries it", "no attempt is left", "a finding"],
)
def test_what_was_not_to_be_retried_missed_nothing(alpha: Alpha, tags: dict[str, str]) -> None:
    alpha.run(dg.DagsterRunStatus.FAILURE, **tags)
    assert alpha.missed() == []


@pytest.fixture
def profile(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> InstanceRef:
    """A shipped dagster.yaml, as Dagster reads it."""
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    for name in ("HOST", "USER", "PASSWORD"):
        monkeypatch.setenv(f"DAGSTER_DATABASE_{name}", "given")
    copy(ROOT / "deploy" / request.param / "dagster.yaml", tmp_path)
    return InstanceRef.from_dir(str(tmp_path))


@pytest.mark.parametrize(
    ("profile", "launcher"),
    [
        ("hosts", "DefaultRunLauncher"),
        ("docker", "DockerRunLauncher"),
        ("kubernetes", "K8sRunLauncher"),
    ],
    indirect=["profile"],
)
def test_dagster_takes_the_shipped_profiles(profile: InstanceRef, launcher: str) -> None:
    assert type(profile.run_launcher).__name__ == launcher, "its own schema is held to"
    assert profile.storage_data.class_name == "DagsterPostgresStorage"
    assert "postgresql+psycopg2" in profile.storage_data.config_yaml


@pytest.mark.parametrize("profile", ["kubernetes"], indirect=True)
def test_the_pod_of_a_drill_is_started_once_and_keeps_its_results(profile: InstanceRef) -> None:
    launcher = profile.run_launcher
    run = dg.DagsterRun(job_name="drill")
    settings = K8sContainerContext.create_for_run(run, launcher, include_run_tags=True)
    job = construct_dagster_k8s_job(
        settings.get_k8s_job_config("recovery-pipelines", launcher),
        ["dagster", "api", "execute_run"],
        "drill",
        user_defined_k8s_config=settings.run_k8s_config,
    ).spec
    pod = job.template.spec
    assert (job.backoff_limit, pod.restart_policy) == (0, "Never")
    volume = pod.volumes[1]
    assert volume.persistent_volume_claim.claim_name == "recovery-results"
    mounts = {mount.name: mount.mount_path for mount in pod.containers[0].volume_mounts}
    assert mounts[volume.name] == "/opt/plan/data"


@pytest.mark.parametrize("name", ["hosts", "docker", "kubernetes"])
def test_a_profile_differs_from_one_machines_settings_only_where_it_must(name: str) -> None:
    settings = yaml.safe_load((ROOT / "deploy" / name / "dagster.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert all(settings[key] == shipped[key] for key in shipped.keys() - {"concurrency"})
    assert settings.keys() - shipped.keys() <= {"storage", "run_launcher", "run_queue"}


def test_dagster_takes_the_shipped_workspace() -> None:
    workspace = yaml.safe_load((ROOT / "deploy/hosts/workspace.yaml").read_text())
    assert process_workspace_config(workspace).success
