"""What the rows of trials add up to: who detected how much of which damage, in how long."""

from collections.abc import Mapping, Sequence

import pandas as pd
import scipy

from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.matrix.bench import APPLICATIONS
from recovery_pipelines.matrix.trials import CLEAN, OK
from recovery_pipelines.verdict import CheckResult, Verdict

Rows = pd.DataFrame

TOOL = ("quick_check", "full_check", "restore")
DETECTORS: Mapping[str, str] = {
    "quick_check": "the tool's quick check reports something",
    "full_check": "the tool's check of all data and our ledger of snapshots report something",
    "restore": "the tool's restore reports something",
    "manifest": "our manifest differs",
    "applications": f"one of {', '.join(APPLICATIONS)} says FAIL",
    "verdict": "the manifest differs and a criterion says FAIL: what a drill's verdict rests on",
}
"""The layers of detection. Only the last three look at the restored data."""
CHECKS: Mapping[str, str] = {
    "every_damage_caught": "Wrong data never pass the manifest and the criteria.",
    "no_false_alarms": "Right data always pass, and sound repositories the tool's checks.",
}
CONFIDENCE = 0.95
_CRITERIA = list(CRITERIA)
_NAMED = 10
_TRIAL = ["engine", "seed", "layer", "kind"]


def cells(rows: Rows) -> pd.DataFrame:
    """One row per engine, layer of the fault, kind and detector.

    `detected` of `total`, `rate_low rate_high` (exact, 95 %), `seconds` (mean). The tool's two
    checks are asked about damage in the repository, so each damage counts. The others are asked
    about data, so only trials count whose data are really wrong. A cell without any is left out.
    """
    found = []
    for (engine, layer, kind), trials in faults(rows).groupby(
        ["engine", "layer", "kind"], sort=False
    ):
        for detector in DETECTORS:
            if layer == Layer.RESTORED_COPY and detector in TOOL:
                continue
            asked = trials if detector.endswith("_check") else trials[trials["differs"]]
            if asked.empty:
                continue
            detected = int(_detected(asked, detector).sum())
            low, high = interval(detected, len(asked))
            found.append(
                {
                    "engine": engine,
                    "layer": layer,
                    "kind": kind,
                    "detector": detector,
                    "detected": detected,
                    "total": len(asked),
                    "rate_low": low,
                    "rate_high": high,
                    "seconds": _mean_seconds(asked, detector),
                }
            )
    return pd.DataFrame(found)


def summed(counted: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Cells taken together by these columns, with the exact interval of each sum."""
    together = counted.groupby(list(by), sort=False, as_index=False)[["detected", "total"]].sum()
    bounds = [interval(row["detected"], row["total"]) for row in together.to_dict("records")]
    return together.assign(
        rate_low=[low for low, _ in bounds], rate_high=[high for _, high in bounds]
    )


def silent_restores(rows: Rows) -> pd.DataFrame:
    """Restores that reported success and brought wrong data: `engine kind` and how many.

    `of` is how often the fault was planted, `checks_silent` how many of the wrong restores neither
    check of the tool had warned of, `caught` how many our verdict did.
    """
    planted = faults(rows)
    planted = planted[planted["layer"] == Layer.REPOSITORY]
    silent = planted[planted["differs"] & (planted["restore"] == OK)]
    found = [
        {
            "engine": engine,
            "kind": kind,
            "silent": len(group),
            "of": int(((planted["engine"] == engine) & (planted["kind"] == kind)).sum()),
            "checks_silent": int(
                ((group["quick_check"] == OK) & (group["full_check"] == OK)).sum()
            ),
            "caught": int(_detected(group, "verdict").sum()),
        }
        for (engine, kind), group in silent.groupby(["engine", "kind"], sort=False)
    ]
    return pd.DataFrame(
        found, columns=["engine", "kind", "silent", "of", "checks_silent", "caught"]
    )


def totals(rows: Rows) -> pd.DataFrame:
    """One row per engine: injections, wrong data, missed, clean restores, false alarms."""
    missed_rows, alarms = missed(rows), false_alarms(rows)
    found = []
    for engine, group in rows.groupby("engine", sort=False):
        planted = faults(group)
        found.append(
            {
                "engine": engine,
                "injections": len(planted),
                "data_wrong": int(planted["differs"].sum()),
                "missed": int((missed_rows["engine"] == engine).sum()),
                "silent_restores": int(silent_restores(group)["silent"].sum()),
                "clean_restores": int((group["layer"] == CLEAN).sum()),
                "false_alarms": int((alarms["engine"] == engine).sum()),
                "no_place": int((~group["place_found"].astype(bool)).sum()),
            }
        )
    return pd.DataFrame(found)


def missed(rows: Rows) -> Rows:
    """Trials whose data are wrong without the manifest and the criteria that must say so.

    For damage in a restored copy one of the criteria that the catalogue names has to say FAIL.
    """
    wrong = faults(rows)
    wrong = wrong[wrong["differs"]]
    noticed = _detected(wrong, "verdict")
    in_copy = wrong["layer"] == Layer.RESTORED_COPY
    named = pd.Series(
        [
            any(row[name] == Verdict.FAIL for name in row["caught_by"])
            for row in wrong[["caught_by", *_CRITERIA]].to_dict("records")
        ],
        index=wrong.index,
        dtype=bool,
    )
    return wrong[~noticed | (in_copy & ~named)]


def false_alarms(rows: Rows) -> Rows:
    """Trials whose data are right, yet the manifest differs or a criterion does not PASS.

    Without any fault a complaint of the tool is one, too; and wrong data are worse than an alarm.
    """
    placed = _placed(rows)
    alarmed = placed["detected"] | ~(placed[_CRITERIA] == Verdict.PASS).all(axis=1)
    clean = placed["layer"] == CLEAN
    complained = (placed[list(TOOL)] != OK).any(axis=1)
    return placed[(~placed["differs"] & alarmed) | (clean & (complained | placed["differs"]))]


def judge(rows: Rows) -> list[CheckResult]:
    """`every_damage_caught` and `no_false_alarms`; without a trial of the kind UNVERIFIED."""
    caught, quiet = CHECKS
    wrong = faults(rows)["differs"].sum()
    clean = int((rows["layer"] == CLEAN).sum())
    return [
        _result(caught, "missed", missed(rows), int(wrong), "trials with wrong data"),
        _result(quiet, "false alarms", false_alarms(rows), clean, "clean restores"),
    ]


def faults(rows: Rows) -> Rows:
    """The trials in which a fault was planted."""
    placed = _placed(rows)
    return placed[placed["layer"] != CLEAN]


def interval(count: int, total: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) 95 % interval of a rate."""
    low, high = scipy.stats.binomtest(count, total).proportion_ci(CONFIDENCE, "exact")
    return float(low), float(high)


def _result(name: str, what: str, found: Rows, trials: int, of: str) -> CheckResult:
    expected = f"0 {what} in {trials} {of}"
    if len(found):
        named = ["/".join(map(str, row)) for row in found[_TRIAL].to_numpy()]
        words = f"{len(found)} {what}: {', '.join(named[:_NAMED])}"
        return CheckResult(name, Verdict.FAIL, expected, words)
    if not trials:
        return CheckResult(name, Verdict.UNVERIFIED, f"some {of}", "none: nothing is proven")
    _, high = interval(0, trials)
    words = f"0 {what} in {trials} {of}; the rate is below {high:.2%} (95 %)"
    return CheckResult(name, Verdict.PASS, expected, words)


def _placed(rows: Rows) -> Rows:
    placed = rows[rows["place_found"].astype(bool)].copy()
    for name in ("differs", "detected"):
        placed[name] = placed[name].astype(bool)
    return placed


def _detected(rows: Rows, detector: str) -> "pd.Series[bool]":
    if detector in TOOL:
        return rows[detector] != OK
    if detector == "manifest":
        return rows["detected"]
    names: Sequence[str] = APPLICATIONS if detector == "applications" else _CRITERIA
    failing = (rows[list(names)] == Verdict.FAIL).any(axis=1)
    return failing if detector == "applications" else failing & rows["detected"]


def _mean_seconds(rows: Rows, detector: str) -> float:
    parts = ("manifest", "applications") if detector == "verdict" else (detector,)
    return float(sum(rows[f"{part}_seconds"].mean() for part in parts))
