"""How a drill begins and ends.

`open_drill` owns what must happen on every way out: the record is written and sealed, the sandbox
is destroyed, the teams are told.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

import pandas as pd

from recovery_pipelines.drills.failure import tell_resolved
from recovery_pipelines.drills.metrics import metrics_row
from recovery_pipelines.drills.record import FILE_NAME, forget_record, results_of, write_record
from recovery_pipelines.drills.resources import ResourceMeter
from recovery_pipelines.drills.run import DrillRun, log
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence import is_sealed, seal
from recovery_pipelines.evidence.timestamp import stamp
from recovery_pipelines.notifications import notify
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.sandbox import Sandbox, exclusive, reap
from recovery_pipelines.secrecy import forbid_core_files
from recovery_pipelines.verdict import Verdict


@contextmanager
def open_drill(
    spec: DrillSpec, month: str, run_id: str, initiator: str = "code", scheduled_at: str = ""
) -> Iterator[DrillRun]:
    """Carry out one drill inside the block; see the module's text for the guarantees.

    Waits for its turn unless the plan allows `parallel_tests`. Raises DrillTimeout out of the
    block when the plan's timeout is reached.
    """
    forbid_core_files()
    home = spec.plan.data_home
    home.mkdir(parents=True, exist_ok=True)
    for removed in reap(home):
        log.warning("removed what a killed drill left behind: %s", removed)
    timeout_seconds = spec.controls.timeout

    def wait(holder: str) -> None:
        log.info("%s waits for %s to end", spec.name, holder)

    turn = spec.name if spec.controls.parallel_tests else "drills"
    with exclusive(home, turn, timeout_seconds, on_wait=wait):
        folder = results_of(spec, month, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE_NAME).exists() and is_sealed(home, folder):
            raise RecoveryError(f"{folder} is sealed: a drill that runs again is a new run")
        forget_record(folder)
        with ResourceMeter() as meter, Sandbox.create(home, spec.name) as sandbox:
            run = DrillRun(
                spec=spec,
                month=month,
                run_id=run_id,
                initiator=initiator,
                scheduled_at=scheduled_at,
                sandbox=sandbox,
                folder=folder,
                meter=meter,
                started_at=datetime.now(UTC),
                deadline=time.monotonic() + timeout_seconds,
            )
            _tell(run, "start", {})
            try:
                with _alarm(run, timeout_seconds):
                    yield run
            except BaseException as error:
                if not run.errors:
                    run.note_error(error)
                raise
            finally:
                with run.cleanup:
                    _close(run)


def _close(run: DrillRun) -> None:
    if not run.metrics:
        run.metrics = metrics_row(run)
    record = _leave_results(run)
    try:
        run.sealed = seal(run.spec.plan.data_home, run.folder, record)
    except (OSError, RecoveryError) as error:
        run.not_sealed = f"not sealed: {error}"
        run.messages.append(run.not_sealed)
        forget_record(run.folder)  # what follows may fail too, and it may say PASS
        run.metrics = metrics_row(run)
        _leave_results(run)
    else:
        _stamp(run)
    folder = str(run.folder)
    _tell(run, "completion", {"verdict": run.verdict, "folder": folder, "evidence": run.evidence})
    if run.verdict is Verdict.PASS:
        tell_resolved(run.spec, run.month, run.started_at)


def _stamp(run: DrillRun) -> None:
    """Have the seal stamped, if the plan names an authority. The next stamp covers a missed one."""
    authority = run.spec.plan.evidence.timestamp_authority
    if authority is None:
        return
    try:
        stamp(run.spec.plan.data_home, authority)
    except (OSError, RecoveryError) as error:
        log.warning("%s: %s", run.spec.name, error)


def _leave_results(run: DrillRun) -> dict[str, object]:
    """Complete the drill's folder; returns the record. What is sealed then never changes."""
    record = run.record()
    reporting = run.spec.automation.reporting
    if "metrics" in reporting:
        run.keep("metrics", pd.DataFrame([run.metrics]))
    if "detailed_logs" not in reporting:
        (run.folder / "journal.jsonl").unlink(missing_ok=True)
    write_record(run.folder, record)
    return record


def _tell(run: DrillRun, moment: str, details: dict[str, object]) -> None:
    if run.spec.shard:
        return  # the teams hear of the whole
    notifications = run.spec.plan.test_framework.test_execution.preparation.notifications
    teams: tuple[str, ...] = getattr(notifications, moment)
    subject = f"recovery drill {run.spec.name} {run.month}: {moment}"
    notify(run.spec.plan, teams, subject, {"drill": run.spec.name, "month": run.month, **details})


@contextmanager
def _alarm(run: DrillRun, timeout_seconds: float) -> Iterator[None]:
    """Interrupt a stage that runs past the timeout, wherever it is (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if run.in_stage:
            run.remaining_seconds()

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_seconds + 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
