"""applications_functional: what worked with the data before works with it again, on equal data."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import pyarrow.compute as pc

from recovery_pipelines.checks.base import RecoveredState, count, examples, files_of, printable
from recovery_pipelines.checks.canaries import application_canaries
from recovery_pipelines.checks.readers import Look, look_at_all
from recovery_pipelines.faults.base import Fault
from recovery_pipelines.verdict import CheckResult, Verdict

_ADVICE = (
    "no SQLite, Parquet or gzip file worked before the damage, so there is nothing to prove it "
    "with: drop applications_functional from the plan, or point the target at data that has them"
)


class ApplicationsFunctional:
    """Lets SQLite, Parquet and gzip read all of their files, and compares with the facts."""

    name: ClassVar[str] = "applications_functional"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        return application_canaries(sample, self.name)

    def run(self, state: RecoveredState) -> CheckResult:
        facts = state.facts
        broken_before = count(pc.is_valid(facts["application_error"]))
        working = facts.filter(pc.is_valid(facts["application_facts"]))
        by_application = Counter(working["application"].to_pylist())
        expected = f"{len(working)} files work and hold the same data as before the damage" + (
            f" ({', '.join(f'{count} {name}' for name, count in sorted(by_application.items()))})"
            if working
            else ""
        )
        is_there = pc.is_in(working["path"], files_of(state.found_entries)["path"])
        wrong = [
            f"{printable(path)}: no such file"
            for path in working.filter(pc.invert(is_there))["path"].to_pylist()
        ]
        there = working.filter(is_there)
        columns = [there[name].to_pylist() for name in ("path", *Look._fields)]
        looks = look_at_all(state.tree, columns[0])
        for look, path, *before in zip(looks, *columns, strict=True):
            if look != tuple(before):
                wrong.append(f"{printable(path)}: {_difference(Look(*before), look)}")

        found = f"{len(working) - len(wrong)} files work and hold the same data"
        if wrong:
            found += f"; {len(wrong)} files do not{examples(wrong)}"
        if broken_before:
            found += f"; {broken_before} files not counted: broken or unreadable before the damage"
        if not working:
            return CheckResult(self.name, Verdict.UNVERIFIED, expected, f"{found}; {_ADVICE}")
        return CheckResult(self.name, Verdict.FAIL if wrong else Verdict.PASS, expected, found)


def _difference(before: Look, after: Look) -> str:
    if after.application != before.application:
        return f"no longer a {before.application} file"
    if after.application_facts is None or before.application_facts is None:
        return f"{after.application} reports {after.application_error}"
    parts = set(before.application_facts.split("; "))
    changed = [part for part in after.application_facts.split("; ") if part not in parts]
    return f"{after.application} now reads {(changed or ['fewer tables'])[0]}"
