"""The scenario network_isolation: safe pairs pass, unsafe ones are found out, and every criterion
can fail."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recovery_pipelines import namespaces
from recovery_pipelines.drills.network_checks import (
    Observed,
    Promise,
    failed_over_in_time,
    judge,
    network_was_cut,
    self_test,
)
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.network import outside
from recovery_pipelines.tools import find_tool
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, PATRONI, make_spec

CRITERIA = (
    "all_services_accessible",
    "no_packet_loss",
    "latency_within_limits",
    "bandwidth_normal",
    "no_split_brain",
    "no_acknowledged_write_lost",
    "primary_restored",
)
SAFE = Promise(synchronous=True, latency_seconds=0.05, may_lose_seconds=0, failover_seconds=10)
LAX = replace(SAFE, synchronous=False, may_lose_seconds=5)


def path(name: str, loss: float = 0, rate: float = 1e8, open_: bool = True) -> dict[str, Any]:
    latency = 0.001 if loss < 1 else None
    return {
        "path": name,
        "accessible": open_,
        "loss": loss,
        "latency_seconds": latency,
        "bits_per_second": rate,
    }


def write(number: int, node: str, at: float) -> dict[str, Any]:
    return {"writer": "client", "number": number, "node": node, "at": at}


WELL = [path("client → primary"), path("standby → primary")]
HELD = {node: {"client": [1, 2, 3]} for node in ("primary", "standby")}
GOOD = Observed(
    before=WELL,
    during=[path("client → primary", 1, 0, False), path("standby → primary", 1, 0, False)],
    after=WELL,
    cut_at=10,
    declared_at=12,
    promoted_at=12.1,
    served_by={"client": "standby"},
    primaries=["standby"],
    writes_after={"client": "primary"},
    acknowledged=[write(1, "primary", 9), write(2, "standby", 13), write(3, "primary", 20)],
    held=HELD,
    primaries_after=["primary"],
    standby_follows=True,
)
WITHOUT_2 = {node: {"client": [1, 3]} for node in HELD}


def test_what_is_well_passes_and_what_was_not_seen_is_unverified() -> None:
    for name in CRITERIA:
        assert judge(name, GOOD, SAFE).verdict is Verdict.PASS
        assert judge(name, Observed(), SAFE).verdict is Verdict.UNVERIFIED
    rows, result = self_test(CRITERIA, GOOD, SAFE)
    assert {row["check"] for row in rows} == set(CRITERIA)
    assert result.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("name", "promise", "harm", "verdict"),
    [
        ("all_services_accessible", SAFE, {"served_by": {"client": None}}, "FAIL"),
        ("all_services_accessible", SAFE, {"writes_after": {"client": None}}, "FAIL"),
        (
            "all_services_accessible",
            SAFE,
            {"after": [path("client → primary", open_=False)]},
            "FAIL",
        ),
        ("no_packet_loss", SAFE, {"after": [path("client → primary", 0.01)]}, "FAIL"),
        ("latency_within_limits", SAFE, {"after": [path("client → primary", 1)]}, "FAIL"),
        ("bandwidth_normal", SAFE, {"after": [path("client → primary", rate=2e6)]}, "FAIL"),
        ("bandwidth_normal", SAFE, {"before": []}, "UNVERIFIED"),
        ("no_split_brain", SAFE, {"primaries": ["primary", "standby"]}, "FAIL"),
        (
            "no_split_brain",
            SAFE,
            {"acknowledged": [write(1, "primary", 12.5), write(2, "standby", 13)]},
            "FAIL",
        ),
        (
            "no_split_brain",
            SAFE,
            {
                "acknowledged": [
                    write(1, "standby", 11),
                    write(2, "primary", 11.5),
                    write(3, "standby", 13),
                ]
            },
            "FAIL",
        ),
        ("primary_restored", SAFE, {"writes_after": {"client": "standby"}}, "FAIL"),
        ("primary_restored", SAFE, {"writes_after": {"client": None}}, "FAIL"),
        ("primary_restored", SAFE, {"primaries_after": ["primary", "standby"]}, "FAIL"),
        ("primary_restored", SAFE, {"primaries_after": []}, "FAIL"),
        ("primary_restored", SAFE, {"standby_follows": False}, "FAIL"),
        ("no_acknowledged_write_lost", SAFE, {"held": WITHOUT_2}, "FAIL"),
        ("no_acknowledged_write_lost", LAX, {"held": WITHOUT_2}, "PASS"),
        (
            "no_acknowledged_write_lost",
            LAX,
            {"held": {node: {"client": []} for node in HELD}},
            "FAIL",
        ),
        (
            "no_acknowledged_write_lost",
            SAFE,
            {"held": {**HELD, "standby": {"client": [1, 3]}}},
            "FAIL",
        ),
        ("no_acknowledged_write_lost", SAFE, {"held": {}}, "UNVERIFIED"),
    ],
)
def test_every_criterion_can_fail(
    name: str, promise: Promise, harm: dict[str, Any], verdict: str
) -> None:
    assert judge(name, replace(GOOD, **harm), promise).verdict == verdict


@pytest.mark.parametrize(
    ("kind", "during", "verdict"),
    [
        ("drop", GOOD.during, "PASS"),
        ("drop", WELL, "INVALID"),
        ("loss", WELL, "INVALID"),
        ("rate_limit", WELL, "INVALID"),
        ("rate_limit", [path("standby → primary", rate=2e6)], "PASS"),
        ("drop", [], "UNVERIFIED"),
    ],
)
def test_a_failure_that_did_not_happen_is_found_out(kind: str, during: Any, verdict: str) -> None:
    assert network_was_cut(replace(GOOD, during=during), kind).verdict == verdict


def test_failover_must_come_in_time() -> None:
    assert failed_over_in_time(GOOD, SAFE).verdict is Verdict.PASS
    assert failed_over_in_time(GOOD, replace(SAFE, failover_seconds=2)).verdict is Verdict.FAIL
    assert failed_over_in_time(replace(GOOD, promoted_at=None), SAFE).verdict is Verdict.FAIL
    assert failed_over_in_time(Observed(), SAFE).verdict is Verdict.UNVERIFIED


# --- real drills ----------------------------------------------------------------------------


def drill(folder: Path, **pair: Any) -> DrillRecord:
    changes = {f"targets__test_replication__{key}": value for key, value in pair.items()}
    return carry_out_steps(make_spec(folder, "network_isolation", **changes), MONTH, "run")


def verdicts(record: DrillRecord) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in record.checks}


def test_a_synchronous_pair_with_fencing_passes(tmp_path: Path) -> None:
    record = drill(tmp_path, failures=["one_sided_drop"])
    if record.verdict is Verdict.UNVERIFIED:
        pytest.skip(record.reason)
    assert record.verdict is Verdict.PASS, record.reason
    assert record.metrics["lost_writes"] == 0 < record.metrics["acknowledged_writes"]
    assert record.metrics["client_gap_seconds"] > 0
    assert record.metrics["detect_seconds"] + record.metrics["publish_seconds"] < 10
    looks = pd.read_parquet(record.folder / "observations.parquet")
    assert set(looks["vantage_point"]) == {"standby", "witness"}


def test_patroni_fails_over_and_back(tmp_path: Path) -> None:
    record = drill(tmp_path, failures=["one_sided_drop"], patroni=str(PATRONI))
    if record.verdict is Verdict.UNVERIFIED:
        pytest.skip(record.reason)
    assert record.verdict is Verdict.PASS, record.reason
    assert verdicts(record)["primary_restored"] is Verdict.PASS
    assert str(record.system_snapshot["engine_version"]).startswith("patroni ")
    assert record.metrics["lost_writes"] == 0 < record.metrics["acknowledged_writes"]
    acknowledged = pd.read_parquet(record.folder / "acknowledgements.parquet")
    client = acknowledged[acknowledged["writer"] == "client"]
    changes = client["node"][client["node"].shift() != client["node"]]
    assert list(changes) == ["primary", "standby", "primary"]


def test_an_asynchronous_pair_without_fencing_is_found_out(tmp_path: Path) -> None:
    record = drill(tmp_path, failures=["one_sided_drop"], replication="asynchronous", fencing=False)
    if record.verdict is Verdict.UNVERIFIED:
        pytest.skip(record.reason)
    assert record.verdict is Verdict.FAIL
    found = verdicts(record)
    assert found["no_split_brain"] is Verdict.FAIL
    assert found["no_acknowledged_write_lost"] is Verdict.FAIL
    assert record.metrics["lost_writes"] > 100
    assert f"{record.metrics['lost_writes']:,} of" in record.reason


def test_a_machine_without_etcd_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, package: str | None = None) -> str:
        return find_tool(f"no-such-{name}" if name == "etcd" else name, package)

    monkeypatch.setattr(outside, "find_tool", find)
    record = drill(tmp_path, failures=["drop"], patroni="/bin/true")
    assert record.verdict is Verdict.UNVERIFIED, record.reason
    assert set(verdicts(record).values()) == {Verdict.UNVERIFIED}
    assert "etcd-server" in record.reason


def test_a_patroni_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    record = drill(tmp_path, failures=["drop"], patroni="/bin/false")
    if "namespaces" in record.reason or "etcd" in record.reason:
        pytest.skip(record.reason)
    assert set(verdicts(record).values()) == {Verdict.UNVERIFIED}
    assert "/bin/false cannot be run by the user of the databases" in record.reason


def test_a_machine_that_cannot_do_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "_NAMESPACES", ("--no-such-namespace",))
    record = drill(tmp_path, failures=["drop"])
    assert record.verdict is Verdict.UNVERIFIED, record.reason
    assert set(verdicts(record).values()) == {Verdict.UNVERIFIED}
    assert "unshare" in record.reason
