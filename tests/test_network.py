"""A network that is really cut, and a database that really fails over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery_pipelines.errors import NetworkError
from recovery_pipelines.network.outside import Laboratory
from recovery_pipelines.network.vantage import FAILURES_TO_DECLARE, Observation
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import find_tool

PEER, CLIENT = "standby → primary", "client → primary"


def start(folder: Path, *, synchronous: bool = True) -> Iterator[Laboratory]:
    with Sandbox.create(folder, "network") as sandbox:
        try:
            laboratory = Laboratory(sandbox, folder / "logs", synchronous=synchronous)
        except NetworkError as error:
            pytest.skip(f"no laboratory on this machine: {error}")
        with laboratory:
            yield laboratory


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    for laboratory in start(tmp_path_factory.mktemp("network")):
        laboratory.ask("build")
        yield laboratory


def paths(laboratory: Laboratory) -> dict[str, dict[str, float]]:
    measured = laboratory.ask("measure", paths=[PEER, CLIENT], transfers=1)["paths"]
    return {row["path"]: row for row in measured}


@pytest.mark.parametrize(
    ("failure", "peer_loss", "client_loss", "slow"),
    [
        ("link_down", (1, 1), (1, 1), True),
        ("drop", (1, 1), (1, 1), True),
        ("one_sided_drop", (1, 1), (0, 0), False),
        ("loss", (0.2, 0.9), (0.2, 0.9), True),
        ("rate_limit", (0, 0.5), (0, 0.5), True),
    ],
)
def test_every_cut_is_seen_and_healed(
    laboratory: Laboratory,
    failure: str,
    peer_loss: tuple[float, float],
    client_loss: tuple[float, float],
    slow: bool,
) -> None:
    laboratory.ask("cut", kind=failure)
    cut = paths(laboratory)
    assert laboratory.ask("heal")["healed"]
    well = paths(laboratory)
    assert peer_loss[0] <= cut[PEER]["loss"] <= peer_loss[1]
    assert client_loss[0] <= cut[CLIENT]["loss"] <= client_loss[1]
    assert (cut[CLIENT]["bits_per_second"] < 25e6) == slow
    for row in well.values():
        assert row["loss"] == 0 and row["accessible"]
        assert row["bits_per_second"] > 50e6


def test_one_view_alone_does_not_fail_over(laboratory: Laboratory) -> None:
    laboratory.ask("watch", points=["standby", "client"], least_bits_per_second=25e6)
    laboratory.ask("cut", kind="one_sided_drop")
    found = laboratory.ask("fail_over", fence=True, patience=4)
    assert laboratory.ask("heal")["healed"]
    assert found["promoted_at"] is None
    seen = [Observation(row["at"], row["why"]) for row in found["observations"]]
    assert sum(bool(row.why) for row in seen) >= FAILURES_TO_DECLARE
    assert laboratory.ask("services", since=0.0)["primaries"] == ["primary"]


def test_programs_of_administrators_are_found_with_an_ordinary_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert Path(find_tool("ip", "iproute2")).parent.name in ("bin", "sbin")
    assert Path(find_tool("nft", "nftables")).parent.name == "sbin"
