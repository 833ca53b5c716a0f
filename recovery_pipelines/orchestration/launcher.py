"""A run launcher that notices a dead host.

Dagster's default launcher never says that a run's process is gone when everything died at once
(a host crash): the run stays STARTED for ever and keeps its slot. This one asks the code server
that holds the run; and for a drill that `recovery drill` runs by itself, the kernel. It leans on
names that Dagster keeps private, so dagster is pinned and tests/test_execution.py holds it to it.
"""

import json
import os
import socket
from typing import Any

import psutil
from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

PROCESS_TAG = "recovery/process"
_REPLY_TIMEOUT_SECONDS = 10


def own_process_tag() -> dict[str, str]:
    """A run tag that says which process carries out a run outside Dagster's launcher."""
    process = psutil.Process()
    identity = {"host": socket.gethostname(), "pid": os.getpid(), "start": process.create_time()}
    return {PROCESS_TAG: json.dumps(identity)}


class SupervisedRunLauncher(DefaultRunLauncher):
    """Launches like Dagster's default, and tells run monitoring whether a run is alive."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """RUNNING while the run's process lives; FAILED once it, or its code server, is gone."""
        if PROCESS_TAG in run.tags:
            return _process_health(json.loads(run.tags[PROCESS_TAG]))
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not launched here: cannot tell")
        request = CanCancelExecutionRequest(run_id=run.run_id)
        try:
            reply = client.can_cancel_execution(request, timeout=_REPLY_TIMEOUT_SECONDS)
        except DagsterUserCodeUnreachableError as error:
            return CheckRunHealthResult(WorkerStatus.FAILED, f"code server gone: {error}")
        if deserialize_value(reply, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process is gone")


def _process_health(identity: dict[str, Any]) -> CheckRunHealthResult:
    if identity["host"] != socket.gethostname():
        return CheckRunHealthResult(WorkerStatus.RUNNING, "on another host: cannot tell")
    try:
        alive = psutil.Process(identity["pid"]).create_time() == identity["start"]
    except psutil.NoSuchProcess:
        alive = False
    if alive:
        return CheckRunHealthResult(WorkerStatus.RUNNING)
    return CheckRunHealthResult(WorkerStatus.FAILED, f"process {identity['pid']} is gone")
