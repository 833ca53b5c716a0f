"""A short slice of the campaign, and that the campaign would tell if something were missed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from campaigns.clean_runs import awkward_runs, clean_runs
from campaigns.history import ENGINES, History, open_history
from campaigns.injections import source_injections
from campaigns.summary import failures, known_loss, placed, summary
from recovery_pipelines.checks import RecoveredState
from recovery_pipelines.matrix.truth import look
from recovery_pipelines.sandbox import Tree

SEED = 7
KINDS = {
    "tar": (
        "bit_flip",
        "zeros_to_hole",
        "delete_directory",
        "type_change",
        "acl_change",
        "mtime_change",
    ),
    "restic": ("symlink_retarget", "xattr_lost"),
}

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", params=ENGINES)
def tables(request: pytest.FixtureRequest, home: Path) -> Tables:
    engine: str = request.param
    if not shutil.which(engine):
        pytest.skip(f"{engine} is not installed (apt-get install {engine})")
    with open_history(home, engine, SEED) as history:
        injected = list(source_injections(history, SEED, KINDS[engine]))
        clean = list(clean_runs(history, SEED))
    clean += awkward_runs(home, engine)
    return {"injections": pd.DataFrame(injected), "clean_runs": pd.DataFrame(clean)}


def test_all_damage_is_caught_and_recovered_and_nothing_else_is_reported(tables: Tables) -> None:
    assert failures(tables) == []
    injected = placed(tables["injections"])
    engine = injected["engine"].iloc[0]
    assert len(injected) == len(KINDS[engine])
    assert injected["differs"].sum() >= len(injected) - 2, "nearly all faults leave data wrong"
    assert "missed: 0" in summary(tables)


def test_what_a_tool_loses_is_a_failure_of_the_criterion_it_concerns(tables: Tables) -> None:
    rows = tables["clean_runs"]
    lost = rows[known_loss(rows)]
    assert set(lost["directory_structure_intact"]) <= {"FAIL"}
    assert lost["differs"].all() and lost["detected"].all()
    if rows["engine"].iloc[0] == "tar":
        assert lost.empty


# --- the campaign itself can fail -----------------------------------------------------------


def _set(part: str, column: str, value: object, **where: object) -> Callable[[Tables], None]:
    def spoil(tables: Tables) -> None:
        rows = tables[part]
        chosen = pd.Series(True, rows.index)
        for name, wanted in where.items():
            chosen &= rows[name] == wanted
        rows.loc[rows.index[chosen][:1], column] = value

    return spoil


SPOILT = {
    "damage missed by the manifest": _set("injections", "detected", False, kind="mtime_change"),
    "the catalogue names": _set("injections", "permissions_correct", "PASS", kind="mtime_change"),
    "every criterion": _set("injections", "permissions_correct", "PASS", kind="mtime_change"),
    "catalogue is wrong": _set("injections", "changes_data", True, kind="zeros_to_hole"),
    "false alarms without damage": _set(
        "injections", "checksums_match", "FAIL", kind="zeros_to_hole"
    ),
    "not recovered": _set("injections", "recovered_truly", False, kind="bit_flip", layer="source"),
    "clean runs": _set("clean_runs", "self_test", "INVALID", generation=2),
}


@pytest.mark.parametrize("tables", ["tar"], indirect=True)
@pytest.mark.parametrize("claim", SPOILT)
def test_a_contradiction_is_named(claim: str, tables: Tables) -> None:
    spoilt = {part: rows.copy() for part, rows in tables.items()}
    SPOILT[claim](spoilt)
    assert any(claim in line for line in failures(spoilt)), failures(spoilt)


def test_criteria_that_look_elsewhere_are_found_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = History.examine

    def look_at_the_pristine_copy(self: History, tree: Tree, generation: int) -> RecoveredState:
        return honest(self, self.pristine, generation)

    monkeypatch.setattr(History, "examine", look_at_the_pristine_copy)
    with open_history(home, "tar", SEED) as history:
        rows = list(source_injections(history, SEED, ["bit_flip"]))
    assert len(failures({"injections": pd.DataFrame(rows)})) == 3


# --- the truth ------------------------------------------------------------------------------


def _add_a_name(tree: Path) -> None:
    os.link(tree / "file", tree / "folder" / "name")
    os.utime(tree / "folder", ns=(0, 0))


def _retarget(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("elsewhere")
    os.utime(tree / "link", ns=(0, 0), follow_symlinks=False)
    os.utime(tree, ns=(0, 0))


CHANGES: dict[str, Callable[[Path], None]] = {
    "content": lambda tree: (tree / "file").write_bytes(b"other"),
    "mode": lambda tree: (tree / "file").chmod(0o600),
    "mtime": lambda tree: os.utime(tree / "folder", ns=(0, 1)),
    "xattr": lambda tree: os.setxattr(tree / "file", "user.new", b""),
    "root's xattr": lambda tree: os.setxattr(tree, "user.new", b""),
    "one name more": _add_a_name,
    "link target": _retarget,
}


@pytest.mark.parametrize("aspect", CHANGES)
def test_the_truth_sees_every_aspect(aspect: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"plain")
    (tmp_path / "file").chmod(0o644)
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "folder", tmp_path):
        os.utime(path, ns=(0, 0), follow_symlinks=False)
    before = look(tmp_path)
    assert look(tmp_path) == before
    CHANGES[aspect](tmp_path)
    os.utime(tmp_path / "file", ns=(0, 0))
    assert look(tmp_path) != before
