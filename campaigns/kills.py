"""Drills that are killed: nothing may be left after the next start, and nothing may claim PASS.

A drill runs in a process of its own and gets SIGKILL as soon as its journal shows a given line, or
some time after that. SIGINT instead raises an exception wherever the drill is, so that its own
rollback must do what the reaper does after SIGKILL.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from campaigns.history import MONTH, drill_of, new_run_id, plan_text, services_plan_text
from campaigns.injections import Row
from campaigns.traces import await_end, living, remaining, traces_of
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import FILE_NAME as RECORD
from recovery_pipelines.drills.record import folder_of, read_record
from recovery_pipelines.drills.run import stages_of
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec, load_plan
from recovery_pipelines.sandbox import exclusive, reap
from recovery_pipelines.verdict import Verdict

DATA_DRILLS = ("corruption_recovery_tar", "incremental_recovery_tar")
SERVICE_DRILLS = (
    "complete_system_failure_same_volume",
    "complete_system_failure_volume_destroyed",
    "partial_failure_kill",
    "network_isolation_one_sided_drop",
)
_CRITERIA = {"data_integrity": ["all_files_recovered"]}
"""One, since a drill spends most of its time in the self-tests of all six."""
_ROOT = Path(__file__).parent.parent
_VICTIM_TIMEOUT_SECONDS = 300.0


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
    """Drills of one plan, in one data home."""

    def __init__(self, home: Path, plan: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.plan_path = home / "recovery.yaml"
        self.plan_path.write_text(plan, encoding="utf-8")
        self.plan = load_plan(self.plan_path)

    @classmethod
    def of_data(cls, home: Path, seed: int) -> "Shooting":
        """Drills with the engine tar and 1 MB of data."""
        return cls(home, plan_text(home, "tar", seed, **_CRITERIA))

    def timeline(self, drill: str) -> Timeline:
        """Run a drill to its end."""
        began = time.monotonic()
        run_id = new_run_id("timeline")
        with self._victim(drill, run_id) as process:
            assert process.stdout is not None
            seen = [(time.monotonic() - began, line.strip()) for line in process.stdout]
            process.wait(_VICTIM_TIMEOUT_SECONDS)
        record = read_record(self._folder(drill, run_id))
        if record.verdict is Verdict.ERROR:
            raise RecoveryError(f"a drill that is not killed must end: {record.reason}")
        seconds, lines = zip(*seen, strict=True)
        return Timeline(seconds, lines)

    def kill(
        self,
        drill: str,
        instant: Instant,
        next_start: str = "reaper",
        by: signal.Signals = signal.SIGKILL,
    ) -> Row:
        """Kill a drill, start what is next (`reaper` or the name of a drill), and say what is left.

        `reached` is the journal's last line; `held` how many processes, namespaces and so on the
        drill had when it was killed; `left_behind` what was there right after the exit,
        `gone_after_seconds` how long something still ran, was mounted or held, `still_there` what
        did not go by itself, `leftovers` what is there after the next start. After SIGINT, which a
        drill must clean up itself, the next start comes last, and `leftovers` is what was there
        before it. `claimed` is the verdict that the killed drill recorded, if any, and `complete`
        whether it had come to its end.
        """
        run_id = new_run_id("killed")
        folder = self._folder(drill, run_id)
        with self._victim(drill, run_id) as process:
            self._await(process, instant)
            finished = process.poll() is not None
            traces = traces_of(process.pid)
            process.send_signal(by)
            process.wait(_VICTIM_TIMEOUT_SECONDS)
        tokens = {path.stem for path in self.home.glob("leases/*.json")}
        left_behind = self._things() + [f"process {p.pid}" for p in living(traces, tokens)]
        gone_after_seconds, still_there = await_end(traces, self.home, tokens)
        if by is signal.SIGKILL:
            self._start_next(next_start)
        leftovers = self._things()
        leftovers += self._locks() + remaining(traces, self.home, tokens)
        if by is not signal.SIGKILL:
            self._start_next(next_start)
        return {
            "drill": drill,
            "run_id": run_id,
            "by": by.name,
            "line": instant.line,
            "delay_seconds": instant.delay_seconds,
            "reached": _last_line(folder),
            "finished": finished,
            "held": traces.count,
            "left_behind": left_behind,
            "gone_after_seconds": gone_after_seconds,
            "still_there": still_there,
            "next_start": next_start,
            "leftovers": leftovers,
            "claimed": _claim(folder),
            "complete": self._is_complete(drill, folder),
            "load": os.getloadavg()[0],
        }

    def watch(self, drill: str, under: Sequence[str]) -> Row:
        """Run a drill under another program, such as strace, and then the reaper.

        Columns as for `kill`, and `hangs`: whether it had to be killed.
        """
        run_id = new_run_id("watched")
        folder = self._folder(drill, run_id)
        hangs = False
        with self._victim(drill, run_id, under) as process:
            traces = traces_of(process.pid)
            try:
                process.communicate(timeout=_VICTIM_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                hangs = True
                os.killpg(process.pid, signal.SIGKILL)
        tokens = {path.stem for path in self.home.glob("leases/*.json")}
        reap(self.home)
        return {
            "run_id": run_id,
            "reached": _last_line(folder),
            "hangs": hangs,
            "leftovers": self._things() + self._locks() + remaining(traces, self.home, tokens),
            "claimed": _claim(folder),
            "complete": self._is_complete(drill, folder),
        }

    def run(self, drill: str, run_id: str) -> Verdict:
        """A run, such as a killed one, from its start to its end."""
        with self._victim(drill, run_id) as process:
            assert process.stdout is not None
            process.stdout.read()
            process.wait(_VICTIM_TIMEOUT_SECONDS)
        return read_record(self._folder(drill, run_id)).verdict

    # --- the drill ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _victim(
        self, drill: str, run_id: str, under: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *under,
                *(sys.executable, "-m", "campaigns.victim", self.plan_path, drill, run_id),
            ],
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

    def _start_next(self, next_start: str) -> None:
        if next_start == "reaper":
            reap(self.home)
        else:
            with open_drill(self._spec(next_start), MONTH, new_run_id("next")):
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

    def _spec(self, drill: str) -> DrillSpec:
        return drill_of(self.plan, drill)

    def _folder(self, drill: str, run_id: str) -> Path:
        return folder_of(self.home, drill, MONTH, run_id)

    def _is_complete(self, drill: str, folder: Path) -> bool:
        ended = {line.get("stage") for line in _journal(folder) if line["event"] == "finished"}
        return ended >= set(stages_of(self._spec(drill)))


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


def kills(home: Path, seed: int, random_count: int) -> Iterator[Row]:
    """Both data drills killed at each line of their journal, and `random_count` times at any time.

    Each kill is followed by the reaper or the other drill. Every fourth killed run itself is
    started again and runs to its end: `run_again` is its verdict.
    """
    rng = Random(seed)
    shooting = Shooting.of_data(home, seed)
    for drill, other in (DATA_DRILLS, DATA_DRILLS[::-1]):
        timeline = shooting.timeline(drill)
        instants = timeline.boundaries() + timeline.random_instants(random_count // 2, rng)
        for number, instant in enumerate(instants):
            began = time.monotonic()
            row = shooting.kill(drill, instant, rng.choice(["reaper", other]))
            again = number % 4 == 3 and row["claimed"] is None
            row["run_again"] = str(shooting.run(drill, row["run_id"])) if again else None
            yield row | {"seconds": time.monotonic() - began}


def service_kills(
    home: Path, numbers: Iterable[int], drills: Sequence[str] = SERVICE_DRILLS
) -> Iterator[Row]:
    """Drills on services killed in turn, at any time, every fourth by SIGINT; one row a number.

    After every fourth round they run from their start to their end: `run_again` is the verdict.
    """
    shooting = Shooting(home, services_plan_text(home))
    timelines: dict[str, Timeline] = {}
    for number in numbers:
        began = time.monotonic()
        lap, turn = divmod(number, len(drills))
        drill = drills[turn]
        if drill not in timelines:
            timelines[drill] = shooting.timeline(drill)
        [instant] = timelines[drill].random_instants(1, Random(number))
        by = signal.SIGINT if (lap + turn) % 4 == 3 else signal.SIGKILL
        row = shooting.kill(drill, instant, by=by)
        again = lap % 4 == 3
        row["run_again"] = str(shooting.run(drill, new_run_id("again"))) if again else None
        yield row | {"seconds": time.monotonic() - began}
