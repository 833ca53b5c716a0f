"""Drills killed with SIGKILL: nothing may be left after the next start, and nothing may claim PASS.

A drill runs in a process of its own and is killed as soon as its journal shows a given line, or
some time after that.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from campaigns.history import MONTH, drill_of, new_run_id, plan_text
from campaigns.injections import Row
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import FILE_NAME as RECORD
from recovery_pipelines.drills.record import folder_of, read_record
from recovery_pipelines.drills.run import STAGES
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec, load_plan
from recovery_pipelines.sandbox import exclusive, reap
from recovery_pipelines.sandbox.lease import ENVIRONMENT_NAME
from recovery_pipelines.verdict import Verdict

SCENARIOS = ("corruption_recovery", "incremental_recovery")
_CRITERIA = {"data_integrity": ["all_files_recovered"]}
"""One, since a drill spends most of its time in the self-tests of all six."""
_ROOT = Path(__file__).parent.parent
_VICTIM_TIMEOUT_SECONDS = 300.0
_END_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Instant:
    """When a drill is killed: `delay_seconds` after line number `line` of its journal."""

    line: int
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """A drill that was left alone: when it wrote each line of its journal, and when it ended."""

    seconds: tuple[float, ...]
    lines: tuple[str, ...]

    def boundaries(self) -> list[Instant]:
        """As soon as each line is there."""
        return [Instant(line) for line in range(len(self.lines))]

    def random_instants(self, count: int, rng: Random) -> list[Instant]:
        """Any time between the start of the process and its end, all alike."""
        return [self._instant(rng.uniform(0, self.seconds[-1])) for _ in range(count)]

    def _instant(self, at_seconds: float) -> Instant:
        past = [line for line, seconds in enumerate(self.seconds) if seconds <= at_seconds]
        if not past:
            return Instant(-1, at_seconds)
        return Instant(past[-1], at_seconds - self.seconds[past[-1]])


class Shooting:
    """Drills of one plan with the engine tar and 1 MB of data, in one data home."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.plan_path = home / "recovery.yaml"
        self.plan_path.write_text(plan_text(home, "tar", seed, **_CRITERIA), encoding="utf-8")
        self.plan = load_plan(self.plan_path)

    def timeline(self, scenario: str) -> Timeline:
        """Run a drill to its end."""
        began = time.monotonic()
        run_id = new_run_id("timeline")
        with self._victim(scenario, run_id) as process:
            assert process.stdout is not None
            seen = [(time.monotonic() - began, line.strip()) for line in process.stdout]
            process.wait(_VICTIM_TIMEOUT_SECONDS)
        record = read_record(self._folder(scenario, run_id))
        if record.verdict is not Verdict.PASS:
            raise RecoveryError(f"a drill that is not killed must pass: {record.reason}")
        seconds, lines = zip(*seen, strict=True)
        return Timeline(seconds, lines)

    def kill(self, scenario: str, instant: Instant, next_start: str) -> Row:
        """Kill a drill, start what is next (`reaper` or `drill`), and say what is left.

        `reached` is the journal's last line, `left_behind` what was there before the next start,
        `leftovers` after it. `claimed` is the verdict that the killed drill recorded, if any, and
        `complete` whether it had come to its end.
        """
        run_id = new_run_id("killed")
        folder = self._folder(scenario, run_id)
        with self._victim(scenario, run_id) as process:
            self._await(process, instant)
            finished = process.poll() is not None
            process.kill()
            process.wait()
        tokens = {path.stem for path in self.home.glob("leases/*.json")}
        left_behind = self._things() + _names(_processes(process.pid, tokens))
        self._start_next(next_start, scenario)
        leftovers = self._things()
        # What carries no lease ends by itself, as its parent is gone.
        psutil.wait_procs(_processes(process.pid, tokens), timeout=_END_TIMEOUT_SECONDS)
        leftovers += self._locks() + _names(_processes(process.pid, tokens))
        return {
            "scenario": scenario,
            "run_id": run_id,
            "line": instant.line,
            "delay_seconds": instant.delay_seconds,
            "reached": _last_line(folder),
            "finished": finished,
            "left_behind": left_behind,
            "next_start": next_start,
            "leftovers": leftovers,
            "claimed": _claim(folder),
            "complete": _is_complete(folder),
        }

    def run_again(self, scenario: str, run_id: str) -> Verdict:
        """The killed run, from its start to its end."""
        with self._victim(scenario, run_id) as process:
            assert process.stdout is not None
            process.stdout.read()
            process.wait(_VICTIM_TIMEOUT_SECONDS)
        return read_record(self._folder(scenario, run_id)).verdict

    # --- the drill ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _victim(self, scenario: str, run_id: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "campaigns.victim", self.plan_path, scenario, run_id],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def _await(self, process: subprocess.Popen[str], instant: Instant) -> None:
        assert process.stdout is not None
        for _ in range(instant.line + 1):
            process.stdout.readline()
        if instant.delay_seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(instant.delay_seconds)  # the instant itself

    def _start_next(self, next_start: str, scenario: str) -> None:
        if next_start == "reaper":
            reap(self.home)
        else:
            other = next(name for name in SCENARIOS if name != scenario)
            with open_drill(self._spec(other), MONTH, new_run_id("next")):
                pass

    # --- what is left ---------------------------------------------------------------------

    def _things(self) -> list[str]:
        folders = (self.home / "sandboxes", self.home / "leases")
        found = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return [path.name for path in found if path.name != ".survey"]

    def _locks(self) -> list[str]:
        held = []
        for path in self.home.glob("locks/*"):
            try:
                with exclusive(self.home, path.name, 0):
                    pass
            except RecoveryError:
                held.append(f"lock {path.name}")
        return held

    def _spec(self, scenario: str) -> DrillSpec:
        return drill_of(self.plan, scenario)

    def _folder(self, scenario: str, run_id: str) -> Path:
        return folder_of(self.home, self._spec(scenario).name, MONTH, run_id)


def _claim(folder: Path) -> str | None:
    """The verdict on record."""
    return str(read_record(folder).verdict) if (folder / RECORD).exists() else None


def _journal(folder: Path) -> list[dict[str, object]]:
    path = folder / "journal.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _last_line(folder: Path) -> str:
    journal = _journal(folder)
    if not journal:
        return "before the first line"
    return " ".join(str(journal[-1].get(key, "")) for key in ("stage", "event")).strip()


def _is_complete(folder: Path) -> bool:
    journal = _journal(folder)
    return {line.get("stage") for line in journal if line["event"] == "finished"} >= set(STAGES)


def _processes(session: int, tokens: Collection[str]) -> list[psutil.Process]:
    """What lives of a session, or carries one of these leases."""
    return [process for process in psutil.process_iter() if _belongs(process, session, tokens)]


def _belongs(process: psutil.Process, session: int, tokens: Collection[str]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        carried = process.environ().get(ENVIRONMENT_NAME)
        return carried in tokens or os.getsid(process.pid) == session
    except (psutil.Error, OSError):
        return False


def _names(processes: Collection[psutil.Process]) -> list[str]:
    return [f"process {process.pid}" for process in processes]


def kills(home: Path, seed: int, random_count: int) -> Iterator[Row]:
    """Both scenarios killed at each line of their journal, and `random_count` times at any time.

    Each kill is followed by the next run of the same drill. Every fourth killed run itself is
    started again and runs to its end: `run_again` is its verdict.
    """
    rng = Random(seed)
    shooting = Shooting(home, seed)
    for scenario in SCENARIOS:
        timeline = shooting.timeline(scenario)
        instants = timeline.boundaries() + timeline.random_instants(random_count // 2, rng)
        for number, instant in enumerate(instants):
            began = time.monotonic()
            row = shooting.kill(scenario, instant, rng.choice(["reaper", "drill"]))
            again = number % 4 == 3 and row["claimed"] is None
            row["run_again"] = str(shooting.run_again(scenario, row["run_id"])) if again else None
            yield row | {"seconds": time.monotonic() - began}
