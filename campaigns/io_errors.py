"""System calls that fail under a drill, by strace: it may not lie, leave anything, or need help.

Each trial runs a data drill in which one call of the drill or of a tool returns an error: once, or
from then on, as on a disk that is full or has failed. Which one is drawn from the calls that the
same drill makes when it is left alone, without those of Python's own start.
"""

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from campaigns.history import new_run_id
from campaigns.injections import Row
from campaigns.kills import DATA_DRILLS, Shooting
from recovery_pipelines.evidence import verify
from recovery_pipelines.evidence.chain import FOLDER_NAME
from recovery_pipelines.evidence.keys import PUBLIC_NAME, read_public
from recovery_pipelines.verdict import Verdict

ERRORS = {
    "openat": ("EACCES", "EMFILE", "ENOSPC", "EROFS"),
    "read": ("EIO",),
    "write": ("EDQUOT", "EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "mkdir": ("EACCES", "ENOSPC", "EROFS"),
    "rename": ("EACCES", "EIO", "ENOSPC", "EROFS"),
    "unlinkat": ("EACCES", "EIO", "EROFS"),
    "ftruncate": ("EIO", "ENOSPC"),
}
"""By system call, the errors that it returns."""
_BEGINS = "journal.jsonl"
"""What a drill opens when Python has started."""
_CALL = re.compile(r"^(\d+) +(\w+)\(")


def io_errors(
    home: Path, numbers: Sequence[int], drills: Sequence[str] = DATA_DRILLS
) -> Iterator[Row]:
    """One row a number; every fourth drill is started again, without an error.

    `wrong` is what must not be: a PASS that is not complete, something left after the reaper, an
    evidence chain that does not verify, a drill that hangs, a second run that does not pass.
    """
    shooting = Shooting.of_data(home, seed=1)
    calls = {drill: _calls(shooting, drill, home / "calls") for drill in drills}
    for number in numbers:
        began, rng = time.monotonic(), Random(number)
        drill = drills[number % len(drills)]
        call = rng.choice([name for name in ERRORS if calls[drill][name]])
        error, count = rng.choice(ERRORS[call]), rng.choice(calls[drill][call])
        when = f"{count}{rng.choice(('', '+'))}"
        inject = f"inject={call}:error={error}:when={when}"
        row = shooting.watch(drill, _strace("-o", "/dev/null", "-e", inject, f"-etrace={call}"))
        wrong = [*row["leftovers"], *(["it hangs"] if row["hangs"] else [])]
        if row["claimed"] == Verdict.PASS and not row["complete"]:
            wrong.append("PASS of a drill that did not end")
        wrong += _chain_problems(home)
        if number % 4 == 3:
            again = shooting.run(drill, new_run_id("again"))
            wrong += [f"run again: {again}"] if again is not Verdict.PASS else []
        yield {
            "drill": drill,
            "call": call,
            "error": error,
            "when": when,
            "verdict": row["claimed"],
            "reached": row["reached"],
            "wrong": "; ".join(wrong),
            "seconds": time.monotonic() - began,
        }


def _strace(*options: str) -> list[str]:
    return ["strace", "--follow-forks", "--quiet=all", "--seccomp-bpf", *options, "--"]


def _calls(shooting: Shooting, drill: str, log: Path) -> dict[str, list[int]]:
    """By system call, the number that each one has among those of its process."""
    watched = f"-etrace={','.join(ERRORS)}"
    shooting.watch(drill, _strace("-o", str(log), watched))
    counts: dict[tuple[str, str], int] = {}
    found: dict[str, list[int]] = {call: [] for call in ERRORS}
    has_begun = False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        has_begun = has_begun or _BEGINS in line
        if made := _CALL.match(line):
            who, call = made.groups()
            counts[who, call] = counts.get((who, call), 0) + 1
            if has_begun:
                found[call].append(counts[who, call])
    log.unlink()
    return found


def _chain_problems(home: Path) -> list[str]:
    chain = home / FOLDER_NAME
    if not (chain / PUBLIC_NAME).exists():
        return []
    report = verify(home, read_public(chain / PUBLIC_NAME))
    return [f"chain: {problem}" for problem in (*report.broken, *report.undecided)]
