"""What the rows of a campaign add up to: failures by name, and the tables of docs/campaign.md."""

import functools
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from scipy.stats import binomtest

from campaigns.clean_runs import KNOWN_LOSS
from campaigns.history import ENGINES
from campaigns.problems import scores
from campaigns.story import false_alarms_a_year, story_scores
from recovery_pipelines.checks import CRITERIA

TRIALS = {
    "hostile": ("route",),
    "fuzz": ("parser",),
    "io_errors": ("call", "error"),
    "soak": (),
}
"""Parts whose rows say themselves what is wrong, and what their tables count by."""
PARTS = (
    *("injections", "clean_runs", "kills", "service_kills"),
    *TRIALS,
    *("recommendations", "story"),
)
GOOD = 0.9
"""Precision and recall of the recommendations, and share of the story's problems said in time."""
DECLARED_ALARMS = 0.5
_CRITERIA = list(CRITERIA)

Mask = Callable[[pd.DataFrame], "pd.Series[bool]"]


def failures(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """One line for each claim of the project that the rows contradict, with the rows' names."""
    found: list[str] = []
    where: tuple[str, ...]

    def demand_none(claim: str, rows: pd.DataFrame, *columns: str) -> None:
        if len(rows):
            names = ["/".join(str(value) for value in row) for row in rows[list(columns)].values]
            found.append(f"{claim}: {len(rows)}: {', '.join(names[:10])}")

    if "injections" in tables:
        rows = placed(tables["injections"])
        where = ("engine", "seed", "layer", "kind")
        differs = rows["differs"]
        source = rows["layer"] == "source"
        named = [
            any(row[name] == "FAIL" for name in row["caught_by"]) for _, row in rows.iterrows()
        ]
        demand_none("damage missed by the manifest", rows[differs & ~rows["detected"]], *where)
        demand_none("damage missed by every criterion", rows[differs & ~_caught(rows)], *where)
        demand_none(
            "damage missed by the criteria that the catalogue names",
            rows[differs & source & ~pd.Series(named, rows.index)],
            *where,
        )
        demand_none(
            "the catalogue is wrong about whether data change",
            rows[source & (differs != rows["changes_data"])],
            *where,
        )
        alarms = ~differs & (rows["detected"] | ~_passed(rows))
        demand_none("false alarms without damage", rows[alarms], *where)
        recovered = rows["recovered"].eq(True) & rows["recovered_truly"].eq(True)
        demand_none("damage not recovered", rows[source & ~recovered], *where, "error")
    if "clean_runs" in tables:
        rows = tables["clean_runs"]
        where = ("engine", "seed", "generation")
        lost = known_loss(rows)
        demand_none("wrong without a fault", rows[~lost & rows["differs"]], *where, "differences")
        demand_none("false alarms on clean runs", rows[_alarmed(rows)], *where)
        unseen = lost & (rows["directory_structure_intact"] != "FAIL")
        demand_none("a tool's loss missed", rows[unseen], *where)
    for part in ("kills", "service_kills"):
        if part not in tables:
            continue
        rows = tables[part]
        where = ("drill", "by", "line", "delay_seconds", "reached")
        late = rows[_filled(rows, "still_there")]
        demand_none("something runs on after the exit", late, *where, "still_there")
        left = rows[_filled(rows, "leftovers")]
        demand_none("something is left after the next start", left, *where, "leftovers")
        lied = rows[(rows["claimed"] == "PASS") & ~rows["complete"]]
        demand_none("PASS of a drill that did not end", lied, *where)
        again = rows["run_again"]
        demand_none("cannot be run again", rows[again.notna() & (again != "PASS")], *where)
        if not _filled(rows, "left_behind").any():
            found.append("no kill left anything to clean up: the campaign proves nothing")
    for part, by in TRIALS.items():
        if part in tables:
            rows = tables[part]
            demand_none(part.replace("_", " "), rows[rows["wrong"] != ""], *by, "wrong")
    if "recommendations" in tables:
        scored = scores(tables["recommendations"])
        poor = scored[(scored["precision"] < GOOD) | (scored["recall"] < GOOD)]
        demand_none("recommendations wrong or missing too often", poor, "rule")
    if "story" in tables:
        scored = story_scores(tables["story"])
        where = ("problem",)
        demand_none(
            "not said in time", scored[scored["said in time"] < GOOD * scored["stories"]], *where
        )
        a_year = false_alarms_a_year(tables["story"])
        if a_year > DECLARED_ALARMS:
            found.append(f"{a_year:.2f} false alarms for each drill and year in the story")
    return found


def summary(tables: Mapping[str, pd.DataFrame]) -> str:
    """The figures as Markdown."""
    parts: dict[str, Callable[[pd.DataFrame], str]] = {
        "injections": _injections,
        "clean_runs": _clean_runs,
        "kills": _kills,
        "service_kills": _kills,
        **{part: functools.partial(_trials, part) for part in TRIALS},
        "recommendations": _recommendations,
        "story": _story,
    }
    return "\n\n".join(parts[part](tables[part]) for part in PARTS if part in tables) + "\n"


def placed(rows: pd.DataFrame) -> pd.DataFrame:
    """The injections that found a place."""
    kept = rows[rows["place_found"]].copy()
    for name in ("differs", "detected", "changes_data"):
        kept[name] = kept[name].astype(bool)
    return kept


def known_loss(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Restores that show the loss that we know of, and nothing else."""
    return rows["differences"].map(lambda lines: list(lines) == KNOWN_LOSS)


# --- tables -------------------------------------------------------------------------------


def _injections(rows: pd.DataFrame) -> str:
    rows = placed(rows)
    totals = []
    for (layer, engine), group in rows.groupby(["layer", "engine"], sort=False):
        differing = group[group["differs"]]
        caught = int((differing["detected"] & _caught(differing)).sum())
        missed = len(differing) - caught
        totals.append(
            {
                "layer": layer,
                "engine": engine,
                "kinds": group["kind"].nunique(),
                "injected": len(group),
                "data wrong": len(differing),
                "caught": caught,
                "missed": missed,
                "miss rate, 95 % interval": _interval(missed, len(differing)),
            }
        )
    differing = rows[rows["differs"]]
    missed = len(differing) - int((differing["detected"] & _caught(differing)).sum())
    text = (
        f"{len(rows)} injections, {len(differing)} of which left data wrong; missed: {missed} "
        f"(95 % interval of the rate: {_interval(missed, len(differing))})."
    )
    return "\n\n".join(
        [
            "## Injections",
            text,
            _table(totals),
            "### Faults in the source, tar / restic",
            _by_kind(
                rows,
                {
                    "injected": lambda each: each["place_found"],
                    "data wrong": lambda each: each["differs"],
                    "manifest": lambda each: each["detected"],
                    **{name: _failing(name) for name in _CRITERIA},
                    "recovered": lambda each: each["recovered_truly"].eq(True),
                },
            ),
        ]
    )


def _clean_runs(rows: pd.DataFrame) -> str:
    lost = rows[known_loss(rows)]
    rows = rows[~known_loss(rows)]
    totals = []
    for engine, group in rows.groupby("engine", sort=False):
        alarms = int(_alarmed(group).sum())
        totals.append(
            {
                "engine": engine,
                "data sets": group["seed"].nunique(),
                "restores": len(group),
                "wrong": int(group["differs"].sum()),
                "false alarms": alarms,
                "rate, 95 % interval": _interval(alarms, len(group)),
                "self-tests": int(group["self_test"].notna().sum()),
                "self-tests PASS": int((group["self_test"] == "PASS").sum()),
            }
        )
    alarms = int(_alarmed(rows).sum())
    text = (
        f"{len(rows)} restores without a fault; wrong: {rows['differs'].sum()}; "
        f"false alarms: {alarms} (95 % interval of the rate: {_interval(alarms, len(rows))})."
    )
    sections = ["## Clean runs", text, _table(totals)]
    if len(lost):
        failing = [name for name in _CRITERIA if (lost[name] == "FAIL").all()]
        sections.append(
            f"Not among them: {len(lost)} restores by {', '.join(lost['version'].unique())} of "
            "data with a symbolic link whose target is not UTF-8, which the tool brings back "
            f"wrong. FAIL in each by {', '.join(failing)} ({KNOWN_LOSS[0]})."
        )
    return "\n\n".join(sections)


def _kills(rows: pd.DataFrame) -> str:
    ended = int(rows["finished"].sum())
    rows = rows[~rows["finished"]]
    totals = []
    for (drill, by), group in rows.groupby(["drill", "by"], sort=False):
        again = group["run_again"].dropna()
        totals.append(
            {
                "drill": drill,
                "by": by,
                "kills": len(group),
                "at a line of the journal": int((group["delay_seconds"] == 0).sum()),
                "at any time": int((group["delay_seconds"] > 0).sum()),
                "left something": int(_filled(group, "left_behind").sum()),
                "seconds until nothing ran": _spread(group["gone_after_seconds"]),
                "left after the next start": int(_filled(group, "leftovers").sum()),
                "PASS claimed, not complete": int(
                    ((group["claimed"] == "PASS") & ~group["complete"]).sum()
                ),
                "run again: PASS": f"{(again == 'PASS').sum()} of {len(again)}",
            }
        )
    left = int(_filled(rows, "leftovers").sum())
    text = (
        f"{len(rows)} kills; with something left after the next start: {left} "
        f"(95 % interval of the rate: {_interval(left, len(rows))}). "
        f"Not counted: {ended} drills that ended before their kill."
    )
    title = f"## Kills: {', '.join(rows['drill'].unique())}"
    return "\n\n".join([title, text, _table(totals)])


def _trials(part: str, rows: pd.DataFrame) -> str:
    """How many trials there were, how they ended, and in how many something is wrong."""
    wrong = int((rows["wrong"] != "").sum())
    text = (
        f"{len(rows)} trials; with something wrong: {wrong} "
        f"(95 % interval of the rate: {_interval(wrong, len(rows))})."
    )
    totals = []
    for names, group in rows.groupby(list(TRIALS[part]), sort=False) if TRIALS[part] else []:
        ends = group.get("verdict", pd.Series(dtype=object)).fillna("no record").value_counts()
        totals.append(
            {
                **dict(zip(TRIALS[part], names, strict=True)),
                "trials": len(group),
                "verdicts": ", ".join(f"{n} {name}" for name, n in ends.items()),
                "wrong": int((group["wrong"] != "").sum()),
            }
        )
    title = f"## {part.replace('_', ' ').capitalize()}"
    return "\n\n".join([title, text, *([_table(totals)] if totals else [])])


def _recommendations(rows: pd.DataFrame) -> str:
    text = f"{rows['seed'].nunique()} histories with three drills each."
    return "\n\n".join(["## Recommendations", text, _markdown(scores(rows).round(2))])


def _story(rows: pd.DataFrame) -> str:
    said = rows[~rows["expected"].astype(bool)]["said"].str.split(":").str[0].value_counts()
    text = (
        f"{rows['seed'].nunique()} stories; said without a cause: {said.sum()} "
        f"({false_alarms_a_year(rows):.2f} for each drill and year: {dict(said)})."
    )
    return "\n\n".join(["## Story", text, _markdown(story_scores(rows))])


def _by_kind(rows: pd.DataFrame, columns: Mapping[str, Mask]) -> str:
    table = []
    for kind, group in rows.groupby("kind", sort=False):
        engines = [group[group["engine"] == engine] for engine in ENGINES]
        counts = {
            name: " / ".join(str(int(mask(each).sum())) for each in engines)
            for name, mask in columns.items()
        }
        table.append({"kind": kind} | counts)
    return _table(table)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    text: str = pd.DataFrame(rows).to_markdown(index=False)
    return text


def _markdown(table: pd.DataFrame) -> str:
    return str(table.to_markdown(index=False))


def _spread(values: "pd.Series[float]") -> str:
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})"


def _interval(count: int, total: int) -> str:
    if total == 0:
        return "nothing counted"
    low, high = binomtest(count, total).proportion_ci(0.95, "exact")
    return f"{100 * low:.2f} % to {100 * high:.2f} %"


# --- what a row says ----------------------------------------------------------------------


def _caught(rows: pd.DataFrame) -> "pd.Series[bool]":
    return (rows[_CRITERIA] == "FAIL").any(axis=1)


def _passed(rows: pd.DataFrame) -> "pd.Series[bool]":
    return (rows[_CRITERIA] == "PASS").all(axis=1)


def _failing(name: str) -> Mask:
    return lambda rows: rows[name] == "FAIL"


def _alarmed(rows: pd.DataFrame) -> "pd.Series[bool]":
    self_test_failed = rows["self_test"].notna() & (rows["self_test"] != "PASS")
    return ~rows["differs"] & (rows["detected"] | ~_passed(rows) | self_test_failed)


def _filled(rows: pd.DataFrame, name: str) -> "pd.Series[bool]":
    return rows[name].map(len) > 0
