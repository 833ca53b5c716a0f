"""One drill being carried out: its sandbox, clock, journal and record.

What begins and ends a drill is in `lifecycle`; what the stages of a scenario do is in their own
modules.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from random import Random
from statistics import median

import pandas as pd

from recovery_pipelines.drills.provenance import code_identity, operator
from recovery_pipelines.drills.resources import ResourceMeter
from recovery_pipelines.engines.base import Engine, engine_class
from recovery_pipelines.errors import DrillTimeout, MissingCapability
from recovery_pipelines.evidence import Entry
from recovery_pipelines.manifest import Summary
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.databases import DatabaseTarget
from recovery_pipelines.plan.scenarios import SCENARIO_STEPS
from recovery_pipelines.plan.targets import Target
from recovery_pipelines.sandbox import Sandbox, Tree
from recovery_pipelines.verdict import CheckResult, Verdict, worst

log = logging.getLogger("recovery_pipelines")

_PROGRESS_SECONDS = 5.0

STAGES = (
    "test_dataset",
    "incremental_backups",
    "corruption",
    "restore",
    "checksum_validation",
    "recovery_metrics",
)
"""The stages of the data-recovery scenarios."""
STAGED = (Target, DatabaseTarget)
"""The targets of drills in these stages."""
METRICS_STAGE = STAGES[-1]
"""The last stage of every scenario."""
SHARD_STAGE = "audit_shard"
MERGE_STAGE = "audit_merge"
"""The stages of an audit in shards: one runs all steps for its part, the other joins them."""
_STEP_OF_STAGE = (0, 0, 1, 2, 3, 3)


def stages_of(spec: DrillSpec) -> tuple[str, ...]:
    """The stages of a drill: those above, or the scenario's own steps."""
    if isinstance(spec.target, STAGED):
        return STAGES
    if spec.shard:
        return (SHARD_STAGE,)
    if spec.shards:
        return (MERGE_STAGE, METRICS_STAGE)
    return (*SCENARIO_STEPS[spec.scenario.name], METRICS_STAGE)


def step_of(spec: DrillSpec, stage: str) -> str:
    """The seed's step that a stage belongs to."""
    steps = SCENARIO_STEPS[spec.scenario.name]
    if isinstance(spec.target, STAGED):
        return steps[_STEP_OF_STAGE[STAGES.index(stage)]]
    return steps[-1] if stage == METRICS_STAGE else stage


@dataclass
class DrillRun:
    """The state of one drill. Stages are called in order; what they learn collects here."""

    spec: DrillSpec
    month: str
    """The partition, `YYYY-MM-01`."""
    run_id: str
    sandbox: Sandbox
    folder: Path
    """Where the drill's results are kept, below the data home."""
    meter: ResourceMeter
    started_at: datetime
    checks: list[CheckResult] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Names of the exception types that ended a stage."""
    messages: list[str] = field(default_factory=list)
    """What those exceptions said."""
    not_recovered: str = ""
    """What the recovery did not bring back. The criteria may look at something else."""
    dataset: dict[str, int] = field(default_factory=dict)
    """What the data holds before anything happens, by what is counted."""
    summaries: dict[str, Summary] = field(default_factory=dict)
    """What each captured manifest holds, by its name."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of the recovery: detect, fetch, verify, publish."""
    repeated: dict[str, list[float]] = field(default_factory=dict)
    """Every value of the phases that the plan's `repeats` carried out more than once."""
    repeats_seconds: float = 0.0
    """What the repeats took beyond one recovery."""
    damaged_at: float | None = None
    """Monotonic time at which the damage was done: resolution time counts from here."""
    first_lost_write_at: float | None = None
    """Monotonic time of the first write that no backup holds."""
    published: bool = False
    recovered_files: int = 0
    recovered_bytes: int = 0
    lost_entries: int = 0
    """Entries of the state at the moment of the damage that the recovered data lacks."""
    metrics: dict[str, object] = field(default_factory=dict)
    system_snapshot: dict[str, object] = field(default_factory=dict)
    lacking: str = ""
    """What this machine lacks for the drill; empty: nothing."""
    left_out: list[str] = field(default_factory=list)
    """What the test data or the faults could not do here."""
    canaries: list[dict[str, object]] = field(default_factory=list)
    sealed: Entry | None = None
    """The drill's entry in the chain of evidence, once it has ended."""
    not_sealed: str = ""
    """Why there is none."""
    deadline: float = 0.0
    """On the monotonic clock."""
    in_stage: bool = False
    state: object = None
    """What a scenario's steps leave for the next one within this run, such as a machine."""
    cleanup: ExitStack = field(default_factory=ExitStack)
    """Closed after the drill's record is written and before its sandbox is destroyed."""
    measured: dict[str, object] = field(default_factory=dict)
    """What only this scenario measures: further columns of the metrics row."""
    initiator: str = ""
    """What started the drill: a schedule, a command, a person in the UI."""
    scheduled_at: str = ""
    """When a schedule wanted it to start (UTC, ISO 8601); empty for a drill that was asked for."""
    compared: list[dict[str, object]] = field(default_factory=list)
    """How many entries of each recovered tree were compared, of how many that were backed up."""
    snapshots: list[dict[str, object]] = field(default_factory=list)
    """Id, kind and UTC time of each backup that was made."""
    fault_kinds: dict[str, int] = field(default_factory=dict)
    """How many faults of each kind were injected."""
    shard: dict[str, object] = field(default_factory=dict)
    """If this is a shard: which one, of which audit."""
    merged: list[dict[str, object]] = field(default_factory=list)
    """The shards that this audit was merged from, by their entries in the chain."""

    @property
    def data_bytes(self) -> int | None:
        """Size of the target's files at its newest backup; None without one."""
        if not isinstance(self.spec.target, Target):
            return None
        newest = self.summaries.get(f"generation-{self.newest_generation}")
        return newest.bytes if newest else None

    # --- where things are ---------------------------------------------------------------

    @property
    def live(self) -> Tree:
        """The data that is damaged and recovered."""
        return self.sandbox.tree("live")

    @property
    def repository(self) -> Tree:
        return self.sandbox.tree("repository")

    def manifest_path(self, name: str) -> Path:
        return self.sandbox.tree("manifests").path / f"{name}.parquet"

    @cached_property
    def engine(self) -> Engine:
        """The drill's backup tool, bound to the repository in the sandbox; it holds the secret."""
        make: Callable[..., Engine] = engine_class(self.spec.engine)
        return make(
            self.repository.path,
            self.sandbox.tree("engine").path,
            timeout_seconds=self.remaining_seconds,
            environment=self.sandbox.environment,
        )

    # --- choices ------------------------------------------------------------------------

    def seed(self, purpose: str) -> int:
        """A seed that differs by drill, month and purpose, and is the same on a second run."""
        text = f"{self.spec.name}|{self.month}|{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    @property
    def newest_generation(self) -> int:
        return self.spec.increments

    @property
    def earlier_generation(self) -> int:
        """The older generation that `incremental_recovery` restores beside the newest."""
        return Random(self.seed("earlier generation")).randrange(self.newest_generation)

    # --- time and journal ---------------------------------------------------------------

    def remaining_seconds(self) -> float:
        """Time left before the plan's timeout; raises DrillTimeout if there is none."""
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise DrillTimeout(
                f"the drill ran into its timeout of {self.spec.controls.timeout} s: raise "
                "test_execution.execution_controls.timeout, or make the target smaller"
            )
        return remaining

    @contextmanager
    def stage(self, name: str) -> Iterator[bool]:
        """Journal one stage under the seed's step. Yields False if the plan leaves the step out,
        or if the machine lacks what the drill needs."""
        step = step_of(self.spec, name)
        if self.lacking or step in self.spec.scenario.omitted_steps:
            why = "not possible on this machine" if self.lacking else "omitted by the plan"
            self.journal(step=step, stage=name, event=why)
            yield False
            return
        began = time.monotonic()
        self.journal(step=step, stage=name, event="started")
        try:
            self.remaining_seconds()
            self.in_stage = True
            yield True
        except BaseException as error:
            self.in_stage = False
            self.note_error(error)
            self.journal(step=step, stage=name, event="failed", error=str(error))
            raise
        self.in_stage = False
        elapsed = time.monotonic() - began
        self.journal(step=step, stage=name, event="finished", seconds=round(elapsed, 3))

    @contextmanager
    def needing(self, checks: Sequence[str]) -> Iterator[None]:
        """If the machine lacks what the block needs, nothing of the drill can be done: the plan's
        criteria and `checks` become UNVERIFIED, and say why."""
        try:
            yield
        except MissingCapability as error:
            self.lacking = str(error)
            self.journal(event=f"not possible on this machine: {error}")
            name = self.spec.scenario.name
            self.left_out.append(f"{name} cannot be drilled on this machine: {error}")
            self.checks += [
                CheckResult(check, Verdict.UNVERIFIED, "the drill can run here", self.lacking)
                for check in (*self.spec.scenario.validation_criteria.names, *checks)
            ]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase of the recovery."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - began

    @contextmanager
    def repeat(self) -> Iterator[None]:
        """One of several repeats of the same phases: each value is kept, the median counts."""
        before = dict(self.phases)
        yield
        for name, seconds in self.phases.items():
            if name not in before or seconds > before[name]:
                self.repeated.setdefault(name, []).append(seconds - before.get(name, 0.0))
        self.phases = before | {name: median(values) for name, values in self.repeated.items()}

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[str, float], None]]:
        """Journal a piece of work. The yielded function tells how far it is: now and then in the
        log, and with what was said last in the journal when the block ends."""
        began = told = time.monotonic()
        latest = ""

        def tell(state: str, fraction: float) -> None:
            nonlocal told, latest
            latest = state
            if fraction < 1 and time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                log.info("%s: %s: %.0f %%, %s", self.spec.name, what, 100 * fraction, state)

        yield tell
        self.journal(event=f"{what}: {latest}", seconds=round(time.monotonic() - began, 3))

    def note_error(self, error: BaseException) -> None:
        """An error makes the drill's verdict ERROR at best."""
        self.errors.append(type(error).__name__)
        self.messages.append(str(error) or type(error).__name__)

    def note_not_recovered(self, why: object) -> None:
        """A recovery that did not come to its end makes the drill's verdict FAIL at best."""
        self.not_recovered = f"not recovered: {why}"
        self.journal(event=self.not_recovered)
        self.messages.append(self.not_recovered)

    def journal(self, **event: object) -> None:
        """Append one event to the drill's journal and tell whoever watches."""
        line = {"at": datetime.now(UTC).isoformat(), "monotonic": time.monotonic(), **event}
        with (self.folder / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        said = (event.get(key) for key in ("step", "event", "error", "seconds"))
        words = " ".join(str(word) for word in said if word is not None)
        log.info("%s: %s%s", self.spec.name, words, " s" if "seconds" in event else "")

    def keep(self, name: str, table: pd.DataFrame) -> None:
        """Keep a stage's table with the drill's results."""
        table.to_parquet(self.folder / f"{name}.parquet", index=False)

    # --- the verdict --------------------------------------------------------------------

    @property
    def not_tested(self) -> list[str]:
        """What this drill did not prove, for reports."""
        scenario = self.spec.scenario
        every = type(scenario.validation_criteria)().names
        left_out = [name for name in every if name not in scenario.validation_criteria.names]
        return [
            *self.left_out,
            *(f"step {step} is left out of the plan" for step in scenario.omitted_steps),
            *(f"criterion {name} is left out of the plan" for name in left_out),
            *(f"aspect {name} is not promised by the target" for name in self.spec.target.not_kept),
        ]

    @property
    def verdict(self) -> Verdict:
        """The automated verdict; UNVERIFIED at best where a person must verify something too.

        The evidence combines it with what people sign later: see `evidence.signoff`.
        """
        waits = [Verdict.UNVERIFIED] if self.spec.manual_verification.required_checks else []
        return worst([self.automated_verdict, *waits])

    @property
    def automated_verdict(self) -> Verdict:
        """The worst of everything known. Only a complete, error-free, checked drill can PASS."""
        known = [check.verdict for check in self.checks]
        if self.errors:
            known.append(Verdict.ERROR)
        if self.not_recovered:
            known.append(Verdict.FAIL)
        if self.not_sealed:
            known.append(Verdict.UNVERIFIED)
        if self.spec.scenario.omitted_steps or not self.spec.scenario.validation_criteria.names:
            known.append(Verdict.UNVERIFIED)
        criteria = set(self.spec.scenario.validation_criteria.names)
        if not criteria <= {check.name for check in self.checks}:
            known.append(Verdict.UNVERIFIED)
        return worst(known)

    @property
    def evidence(self) -> str:
        """Number and SHA-256 of the drill's entry in the chain, or why there is none."""
        if self.sealed is None:
            return self.not_sealed or "not sealed yet"
        return f"{self.sealed.seq} {self.sealed.digest}"

    def record(self) -> dict[str, object]:
        """Everything about the drill that outlives it, as JSON values."""
        return {
            "drill": self.spec.name,
            "scenario": self.spec.scenario.name,
            "target": self.spec.target_name,
            "engine": self.spec.engine,
            "month": self.month,
            "run_id": self.run_id,
            "started_at": self.started_at.isoformat(),
            "ended_at": datetime.now(UTC).isoformat(),
            "plan": self.spec.plan.identity,
            "initiator": self.initiator,
            **({"scheduled_at": self.scheduled_at} if self.scheduled_at else {}),
            "operator": operator(),
            "code": code_identity(),
            "verdict": self.verdict,
            "automated_verdict": self.automated_verdict,
            "manual_verification": self.spec.manual_verification.model_dump(mode="json"),
            "snapshots": self.snapshots,
            "faults": self.fault_kinds,
            **({"sampling": self.compared} if self.compared else {}),
            **({"shard": self.shard} if self.shard else {}),
            **({"merged": self.merged} if self.merged else {}),
            "isolation": self.sandbox.isolation,
            "checks": [asdict(check) for check in self.checks],
            "canaries": self.canaries,
            "errors": self.errors,
            "messages": self.messages,
            "not_tested": self.not_tested,
            "objectives": self.spec.target.objectives.model_dump(),
            "metrics": self.metrics,
            "system_snapshot": self.system_snapshot,
        }
