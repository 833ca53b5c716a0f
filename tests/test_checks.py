"""The criteria say PASS of what is right, FAIL of what is wrong, and never PASS of nothing.

Real trees, damaged for real; owners are real users where the tests run as root. The self-test must
find out every deliberately broken check.
"""

import gzip
import io
import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recovery_pipelines import manifest
from recovery_pipelines.checks import (
    CRITERIA,
    Canary,
    RecoveredState,
    applications,
    base,
    canaries,
    capture_facts,
    examine,
    owner_access,
    read_facts,
    readers,
    registry,
    run_checks,
    self_test,
    self_test_verdict,
)
from recovery_pipelines.dataset import build_dataset, copy_tree
from recovery_pipelines.errors import PlanError
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.faults.catalogue import inject, source_faults
from recovery_pipelines.sandbox import Sandbox, Tree
from recovery_pipelines.verdict import CheckResult, Verdict
from tests.nobody import run_as_nobody

NAMES = list(CRITERIA)
BY_MANIFEST = NAMES[:4]
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root: becomes other users")


@dataclass
class Place:
    """A sandbox to work in, and fresh names in it."""

    sandbox: Sandbox
    count: int = 0

    def tree(self) -> Tree:
        self.count += 1
        return self.sandbox.tree(f"tree-{self.count}")

    def file(self) -> Path:
        self.count += 1
        return self.sandbox.path / f"file-{self.count}.parquet"

    def state(self, live: Tree, recovered: Tree, **options: object) -> RecoveredState:
        expected, facts = self.file(), self.file()
        manifest.capture(live.path, expected)
        capture_facts(live, expected, facts)
        return examine(recovered, expected, self.file(), read_facts(facts), **options)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Sandbox.create(tmp_path, "checks") as sandbox:
        yield Place(sandbox)


@dataclass
class Sound:
    """A synthetic dataset with its manifest and facts, and faithful copies on demand."""

    place: Place
    live: Tree
    expected: Path
    facts: pa.Table

    def copy(self) -> Tree:
        tree = self.place.tree()
        copy_tree(self.live.path, tree, timeout_seconds=60)
        return tree

    def look_at(self, tree: Tree, **options: object) -> RecoveredState:
        return examine(tree, self.expected, self.place.file(), self.facts, **options)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sound]:
    with Sandbox.create(tmp_path_factory.mktemp("home"), "sound") as sandbox:
        place = Place(sandbox)
        live = place.tree()
        build_dataset(live, size_bytes=1 << 20, seed=7)
        expected = place.file()
        manifest.capture(live.path, expected)
        yield Sound(place, live, expected, capture_facts(live, expected, place.file()))


@pytest.fixture(scope="module")
def sound_state(sound: Sound) -> RecoveredState:
    return sound.look_at(sound.copy())


def verdicts(state: RecoveredState) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in run_checks(NAMES, state)}


def failed(state: RecoveredState) -> set[str]:
    found = verdicts(state)
    assert set(found.values()) <= {Verdict.PASS, Verdict.FAIL}, found
    return {name for name, verdict in found.items() if verdict is Verdict.FAIL}


# --- what is sound, and what is damaged -----------------------------------------------------------


def test_a_faithful_copy_passes_every_check(sound_state: RecoveredState) -> None:
    results = run_checks(NAMES, sound_state)
    assert [result.verdict for result in results] == [Verdict.PASS] * len(NAMES)
    for result in results:
        assert any(char.isdigit() for char in result.found), "a PASS must say how much was seen"


@pytest.mark.parametrize("kind", sorted(k for k, f in source_faults().items() if f.caught_by))
def test_every_fault_of_the_catalogue_fails_the_checks_that_must_catch_it(
    sound: Sound, kind: str
) -> None:
    tree = sound.copy()
    fault = source_faults()[kind]
    done = inject([fault], tree, Layer.RESTORED_COPY, seed=11)
    if not done:
        pytest.skip(f"{kind} finds no place for this user on this file system")
    found = verdicts(sound.look_at(tree))
    assert {found[name] for name in fault.caught_by} == {Verdict.FAIL}
    assert Verdict.ERROR not in found.values()


TEXT, LINK, SECOND, FOLDER = b"notes/text", b"notes/link", b"notes/second-name", b"empty"
DATABASE, TABLE, LOG = b"shop.db", b"table.parquet", b"log.gz"


def small_tree(tree: Tree) -> None:
    tree.mkdir(b"notes", 0o755)
    tree.mkdir(FOLDER, 0o755)
    tree.write(TEXT, b"a text of some length\n" * 500)
    tree.link(TEXT, SECOND)
    tree.symlink(b"text", LINK)
    tree.write(b"plain", b"plain")
    for name, build in {
        DATABASE: canaries._sqlite_file,
        TABLE: canaries._parquet_file,
        LOG: canaries._gzip_file,
    }.items():
        tree.write(name, build(0))
    for path, status in tree.walk():
        if stat.S_ISREG(status.st_mode):
            tree.chmod(path, 0o644)


def quietly(tree: Tree, damage: Callable[[Tree], object], *directories: bytes) -> None:
    """Do it, and put the directories' times back, so that only the damage itself shows."""
    before = {path: tree.stat(path) for path in directories}
    damage(tree)
    for path, status in before.items():
        tree.utime_ns(path, status.st_atime_ns, status.st_mtime_ns)


def _replace_link(tree: Tree) -> None:
    status = tree.stat(LINK)
    tree.unlink(LINK)
    tree.symlink(b"second-name", LINK)
    tree.utime_ns(LINK, status.st_atime_ns, status.st_mtime_ns)


def _rewrite(path: bytes, data: bytes) -> Callable[[Tree], None]:
    def damage(tree: Tree) -> None:
        quietly(tree, lambda tree: tree.write(path, data), path)

    return damage


A_FILE_LOST = {"all_files_recovered", "checksums_match", "permissions_correct", "files_accessible"}
DAMAGES: dict[str, tuple[Callable[[Tree], object], set[str]]] = {
    "a file is lost": (lambda tree: tree.unlink(b"plain"), A_FILE_LOST),
    "a database is lost": (
        lambda tree: tree.unlink(DATABASE),
        A_FILE_LOST | {"applications_functional"},
    ),
    "a name of a hard-linked file is lost": (lambda tree: tree.unlink(SECOND), A_FILE_LOST),
    "a directory is lost": (
        lambda tree: tree.rmdir(FOLDER),
        {"all_files_recovered", "directory_structure_intact", "permissions_correct"},
    ),
    "a file too many": (lambda tree: tree.write(b"new", b""), {"all_files_recovered"}),
    "a directory too many": (
        lambda tree: tree.mkdir(b"new"),
        {"all_files_recovered", "directory_structure_intact"},
    ),
    "other content": (_rewrite(b"plain", b"PLAIN"), {"checksums_match"}),
    "a file is shorter": (_rewrite(b"plain", b""), {"checksums_match"}),
    "a link leads elsewhere": (_replace_link, {"directory_structure_intact"}),
    "another mode": (lambda tree: tree.chmod(TEXT, 0o640), {"permissions_correct"}),
    "another mtime": (lambda tree: tree.utime_ns(TEXT, 1, 1), {"permissions_correct"}),
    "a broken gzip stream": (
        _rewrite(LOG, canaries._gzip_file(0)[:-9]),
        {"checksums_match", "applications_functional"},
    ),
    "a sound table with another value": (
        _rewrite(TABLE, canaries._parquet_file(1)),
        {"checksums_match", "applications_functional"},
    ),
    "no longer a database": (
        _rewrite(DATABASE, b"hello"),
        {"checksums_match", "applications_functional"},
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_damage_fails_exactly_the_checks_that_it_concerns(place: Place, name: str) -> None:
    live, copy = place.tree(), place.tree()
    small_tree(live)
    copy_tree(live.path, copy, timeout_seconds=60)
    damage, expected = DAMAGES[name]
    quietly(copy, damage, b"", b"notes")
    assert failed(place.state(live, copy)) == expected


def test_a_directory_that_became_a_file_fails_structure(place: Place) -> None:
    live, copy = place.tree(), place.tree()
    small_tree(live)
    copy_tree(live.path, copy, timeout_seconds=60)
    copy.rmdir(FOLDER)
    copy.write(FOLDER, b"")
    assert "directory_structure_intact" in failed(place.state(live, copy))


def test_names_of_every_kind_survive_in_messages(place: Place) -> None:
    live, copy = place.tree(), place.tree()
    for number in range(9):
        live.write(b"line\nbreak \xff %d" % number, b"content")
    copy.write(b"other", b"content")
    results = run_checks(NAMES, place.state(live, copy))
    for result in results:
        assert "\n" not in result.found
        assert len(result.found) < 1000, "examples are bounded"
    assert "line\\nbreak \\xff 0" in results[0].found
    assert "9 entries wrong" not in results[0].found  # 9 missing and 1 unexpected
    assert "10 entries wrong" in results[0].found


# --- nothing is never PASS ------------------------------------------------------------------------

no_files = st.dictionaries(
    st.text(alphabet="abc", min_size=1, max_size=3), st.sampled_from(["directory", "symlink"])
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(expected=no_files, same=st.booleans())
def test_a_state_without_files_never_passes(
    place: Place, expected: dict[str, str], same: bool
) -> None:
    live, copy = place.tree(), place.tree()
    for tree in (live, copy) if same else (live,):
        for name, kind in expected.items():
            if kind == "directory":
                tree.mkdir(name.encode())
            else:
                tree.symlink(b"nowhere", name.encode())
    assert Verdict.PASS not in verdicts(place.state(live, copy)).values()


def test_an_empty_restore_of_files_fails_and_unexpected_files_do_too(
    place: Place, sound: Sound
) -> None:
    empty = place.tree()
    found = verdicts(sound.look_at(empty))
    assert found["all_files_recovered"] is found["checksums_match"] is Verdict.FAIL
    assert Verdict.PASS not in found.values()
    found = verdicts(place.state(empty, sound.live))
    assert found["all_files_recovered"] is Verdict.FAIL
    assert Verdict.PASS not in found.values()


@pytest.mark.parametrize("name", NAMES)
def test_even_a_check_that_says_pass_cannot_pass_an_empty_state(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(CRITERIA, name, always(name, Verdict.PASS))
    (result,) = run_checks([name], place.state(place.tree(), place.tree()))
    assert result.verdict is Verdict.UNVERIFIED


def test_what_the_plan_or_the_target_leaves_out_is_unverified(sound: Sound) -> None:
    tree = sound.copy()
    needs = {
        "checksums_match": "checksums",
        "directory_structure_intact": "structure",
        "permissions_correct": "permissions",
    }
    for name, aspect in needs.items():
        state = sound.look_at(tree, aspects=base.ALL_ASPECTS - {aspect})
        assert {n for n, v in verdicts(state).items() if v is not Verdict.PASS} == {name}
    not_kept = ("mode", "owner", "xattr")
    tree.chmod(b"", 0o700)
    (result,) = run_checks(["permissions_correct"], sound.look_at(tree, not_kept=not_kept))
    assert result.verdict is Verdict.PASS, "the mtime is still compared"
    assert "does not promise to keep it: mode, owner, xattr" in result.found
    state = sound.look_at(tree, not_kept=(*not_kept, "mtime"))
    (result,) = run_checks(["permissions_correct"], state)
    assert result.verdict is Verdict.UNVERIFIED


def test_data_without_applications_is_unverified_with_advice(place: Place) -> None:
    live = place.tree()
    live.write(b"text", b"no application reads this")
    (result,) = run_checks(["applications_functional"], place.state(live, live))
    assert result.verdict is Verdict.UNVERIFIED
    assert "drop applications_functional" in result.found


@pytest.mark.parametrize("name", ["files_accessible", "applications_functional"])
def test_facts_that_tell_nothing_are_unverified(sound: Sound, name: str) -> None:
    state = replace(sound.look_at(sound.copy()), facts=sound.facts.slice(0, 0))
    assert [result.verdict for result in run_checks([name], state)] == [Verdict.UNVERIFIED]


def test_a_comparison_of_other_manifests_is_an_error(sound: Sound, place: Place) -> None:
    state = sound.look_at(sound.copy())
    other = place.tree()
    other.write(b"text", b"")
    state = replace(state, comparison=place.state(other, other).comparison)
    assert set(verdicts(state).values()) == {Verdict.ERROR}


def test_an_unknown_criterion_is_refused_by_name(sound_state: RecoveredState) -> None:
    with pytest.raises(PlanError, match=r"'checksum'; known criteria: all_files_recovered, "):
        run_checks(["checksum"], sound_state)


def test_a_check_of_another_package_runs_under_the_same_rules(
    sound_state: RecoveredState, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = SimpleNamespace(name="theirs", load=lambda: always("checksums_match", Verdict.PASS))
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    empty = place.state(place.tree(), place.tree())
    found = [run_checks(["theirs"], state)[0].verdict for state in (sound_state, empty)]
    assert found == [Verdict.PASS, Verdict.UNVERIFIED]
    result = self_test_verdict(self_test(["theirs"], sound_state, place.tree(), seed=1))
    assert result.verdict is Verdict.INVALID


# --- owners ---------------------------------------------------------------------------------------


@needs_root
def test_files_are_read_by_their_owners_whose_powers_count(place: Place) -> None:
    """Root reads everything; these owners must not, root as an owner included."""
    tree = place.tree()
    files = {
        b"mine": (0, 0o600, "read"),
        b"mine-locked": (0, 0o000, "EACCES"),
        b"alice": (4001, 0o400, "read"),
        b"alice-for-others": (4001, 0o044, "EACCES"),
        b"private/bob": (4002, 0o644, "EACCES"),
        b"open/bob": (4002, 0o600, "read"),
        b"open/empty": (4002, 0o600, "read"),
    }
    tree.mkdir(b"private", 0o700)
    tree.mkdir(b"open", 0o711)
    for path, (uid, mode, _) in files.items():
        tree.write(path, b"" if path.endswith(b"empty") else b"x" * 5000)
        tree.chmod(path, mode)
        tree.chown(path, uid, 4000)
    tree.chmod(b"", 0o755)
    assert place.sandbox.path.stat().st_mode & 0o777 == 0o700, "folders above do not count"
    state = place.state(tree, tree)
    facts = {row["path"]: row["owner_access"] for row in state.facts.to_pylist()}
    assert facts == {path: answer for path, (_, _, answer) in files.items()}
    (result,) = run_checks(["files_accessible"], state)
    assert result.verdict is Verdict.PASS
    assert "3 files not counted" in result.found

    tree.chown(b"alice", 0, 0)
    tree.chmod(b"open", 0o700)
    (result,) = run_checks(["files_accessible"], state)
    assert result.verdict is Verdict.FAIL
    assert "3 files were not (alice: EACCES; open/bob: EACCES; open/empty: EACCES)" in result.found


def test_a_file_behind_a_link_or_replaced_by_a_fifo_is_not_accessible(place: Place) -> None:
    live, copy = place.tree(), place.tree()
    small_tree(live)
    copy_tree(live.path, copy, timeout_seconds=60)
    copy.rename(b"notes", b"elsewhere")
    copy.symlink(b"elsewhere", b"notes")
    copy.unlink(b"plain")
    os.mkfifo(copy.path / "plain")
    (result,) = run_checks(["files_accessible"], place.state(live, copy))
    assert result.verdict is Verdict.FAIL
    assert "3 files were not" in result.found


# --- applications ---------------------------------------------------------------------------------


def look(place: Place, data: bytes, **beside: bytes) -> readers.Look:
    tree = place.tree()
    tree.write(b"file", data)
    for suffix, content in beside.items():
        tree.write(f"file-{suffix}".encode(), content)
    before = [(path, status.st_mtime_ns, status.st_size) for path, status in tree.walk()]
    seen = readers.look_at(tree, b"file")
    assert [(path, status.st_mtime_ns, status.st_size) for path, status in tree.walk()] == before
    return seen


def sqlite_bytes(*statements: str) -> bytes:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(";".join(statements))
        return connection.serialize()


def parquet_bytes(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def test_sqlite_rows_count_not_their_order(place: Place) -> None:
    create = "CREATE TABLE t (a, b)"
    one = look(place, sqlite_bytes(create, "INSERT INTO t VALUES (1, 'x'), (2, NULL), (2, NULL)"))
    two = look(place, sqlite_bytes(create, "INSERT INTO t VALUES (2, NULL), (2, NULL), (1, 'x')"))
    assert one == two
    assert one.application_facts is not None and "'t' 3 rows" in one.application_facts
    others = [
        sqlite_bytes(create, "INSERT INTO t VALUES (1, 'x'), (2, NULL)"),
        sqlite_bytes(create, "INSERT INTO t VALUES (1, x'78'), (2, NULL), (2, NULL)"),
        sqlite_bytes(create, "INSERT INTO t VALUES ('1', 'x'), (2, NULL), (2, NULL)"),
        sqlite_bytes("CREATE TABLE t (a, b, c AS (1))", "INSERT INTO t VALUES (1, 'x')"),
    ]
    looks = [look(place, data) for data in others]
    assert all(seen.application_facts for seen in looks)
    assert len({seen.application_facts for seen in [one, *looks]}) == 5


def test_a_database_with_a_live_journal_is_read_with_it(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(1000)])
        connection.commit()
        data, wal = path.read_bytes(), (tmp_path / "live.db-wal").read_bytes()
    with_journal = look(place, data, wal=wal)
    assert with_journal.application_facts is not None
    assert "'t' 1000 rows" in with_journal.application_facts
    assert look(place, data) != with_journal


def test_a_database_with_a_very_long_path_is_read(place: Place) -> None:
    tree, path = place.tree(), b""
    for _ in range(4):
        path += b"d" * 200
        tree.mkdir(path)
        path += b"/"
    tree.write(path + b"file", canaries._sqlite_file(0))
    assert readers.look_at(tree, path + b"file") == look(place, canaries._sqlite_file(0))


def test_parquet_values_of_every_type_count(place: Place) -> None:
    columns = {
        "int": pa.array([2**60, None, 3]),
        "float": pa.array([float("nan"), None, -0.0]),
        "text": pa.array(["ä", None, ""]),
        "list": pa.array([[1, None], None, []]),
        "struct": pa.array([{"a": 1}, None, {"a": None}]),
        "decimal": pa.array(["1.10", None, "2.20"]).cast(pa.decimal128(9, 2)),
        "time": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
        "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
        "flag": pa.array([True, None, False]),
    }
    whole = look(place, parquet_bytes(pa.table(columns)))
    assert whole.application_facts is not None
    assert whole == look(place, parquet_bytes(pa.table(columns)))
    for name, column in columns.items():
        changed = pa.concat_arrays([column.slice(0, 2), column.slice(1, 1)])
        other = look(place, parquet_bytes(pa.table(columns | {name: changed})))
        assert other.application_facts, other
        assert other != whole, f"a changed value in column {name!r} must show"


def test_parquet_statistics_that_contradict_the_data_are_an_error(place: Place) -> None:
    top = 0x1122334455667788
    data = parquet_bytes(pa.table({"n": [1, top]}), compression="none", use_dictionary=False)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    lower = (top - 1).to_bytes(8, "little")
    lie = data[:footer] + data[footer:].replace(top.to_bytes(8, "little"), lower)
    assert look(place, data).application_error is None
    error = look(place, lie).application_error
    assert error is not None and "outside of the recorded range" in error


@pytest.mark.parametrize("cut", [1, 9, 200])
def test_a_cut_gzip_stream_is_an_error_and_all_members_are_read(place: Place, cut: int) -> None:
    data = gzip.compress(Random(1).randbytes(5000)) + gzip.compress(b"second")
    seen = look(place, data)
    assert seen.application_facts is not None and "5006 bytes" in seen.application_facts
    assert look(place, data[:-cut]).application_error is not None


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(application=st.sampled_from(["sqlite", "parquet", "gzip"]), data=st.data())
def test_damaged_files_never_break_the_reader(
    place: Place, application: str, data: st.DataObject
) -> None:
    _, build, _ = canaries._MADE_APPLICATION_FILES[application]
    content = bytearray(build(0))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    seen = look(place, bytes(content))
    assert (seen.application_facts is None) or (seen.application_error is None)


def test_what_was_broken_before_is_counted_apart(place: Place) -> None:
    tree = place.tree()
    tree.write(b"broken.gz", canaries._gzip_file(0)[:-1])
    (result,) = run_checks(["applications_functional"], place.state(tree, tree))
    assert result.verdict is Verdict.UNVERIFIED
    tree.write(b"sound.gz", canaries._gzip_file(0))
    (result,) = run_checks(["applications_functional"], place.state(tree, tree))
    assert result.verdict is Verdict.PASS
    assert "1 files work" in result.found
    assert "1 files not counted: broken" in result.found


# --- the self-test --------------------------------------------------------------------------------


def always(check_name: str, verdict: Verdict | None) -> type:
    """A broken check: it says the same of everything (None: it raises)."""
    original = CRITERIA[check_name]

    class Broken:
        name = check_name

        def canaries(self, sample: RecoveredState) -> object:
            return original().canaries(sample)

        def run(self, state: RecoveredState) -> CheckResult:
            if verdict is None:
                raise ZeroDivisionError
            return CheckResult(check_name, verdict, "", "")

    return Broken


def test_the_self_test_sees_every_check_pass_and_fail(
    sound: Sound, sound_state: RecoveredState
) -> None:
    scratch = sound.place.tree()
    rows = self_test(NAMES, sound_state, scratch, seed=3)
    assert list(scratch.walk()) == []
    result = self_test_verdict(rows)
    assert result.verdict is Verdict.PASS, result
    for name in NAMES:
        mine = [row for row in rows if row.check == name]
        assert mine[0].kind == "undamaged copy"
        assert len({row.kind for row in mine if row.caught}) >= 3, f"{name} needs several canaries"
    assert not any(row.caught is None for row in rows if IS_ROOT and row.kind != "acl_change")
    again = self_test(NAMES[:1], sound_state, scratch, seed=3)
    assert [(row.kind, row.path) for row in again] == [
        (row.kind, row.path) for row in rows if row.check == NAMES[0]
    ]


def test_the_self_test_works_on_what_was_recovered_badly(sound: Sound, place: Place) -> None:
    """Of nothing, its sample still holds its own files: the checks can be shown to work."""
    damaged = sound.copy()
    inject([source_faults()["mass_encrypt"]], damaged, Layer.RESTORED_COPY, seed=1)
    for tree, names in ((place.tree(), NAMES), (damaged, NAMES[-1:])):
        rows = self_test(names, sound.look_at(tree), place.tree(), seed=1)
        assert self_test_verdict(rows).verdict is Verdict.PASS, rows


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, Verdict.PASS) for name in NAMES),
        *((NAMES[0], verdict) for verdict in (Verdict.FAIL, Verdict.UNVERIFIED, None)),
    ],
)
def test_a_check_that_does_not_look_is_found_out(
    sound: Sound,
    sound_state: RecoveredState,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    says: Verdict | None,
) -> None:
    monkeypatch.setitem(CRITERIA, name, always(name, says))
    result = self_test_verdict(self_test([name], sound_state, sound.place.tree(), seed=5))
    assert result.verdict is Verdict.INVALID
    assert name in result.found


def expected_with_itself(
    expected: Path, found: Path, *, ignore: tuple[str, ...] = ()
) -> manifest.Comparison:
    return manifest.compare(expected, expected, ignore=ignore)


def swapped(expected: Path, found: Path, *, ignore: tuple[str, ...] = ()) -> manifest.Comparison:
    return manifest.compare(found, expected, ignore=ignore)


def read_as_ourselves(tree: Tree, files: pa.Table) -> list[owner_access.Access]:
    """Asks whether the file is there, not whether its owner can read it."""
    for path in files["path"].to_pylist():
        tree.stat(path)
    return [owner_access.Access("read")] * len(files)


def replay(tree: Tree, paths: list[bytes], facts: pa.Table) -> list[readers.Look]:
    """Compares the facts with themselves."""
    known = {row["path"]: row for row in facts.to_pylist()}
    return [readers.Look(*(known[path][name] for name in readers.Look._fields)) for path in paths]


@pytest.mark.parametrize(
    ("name", "compare"),
    [*((name, expected_with_itself) for name in BY_MANIFEST), ("all_files_recovered", swapped)],
)
def test_a_comparison_of_the_wrong_manifests_is_found_out(
    sound: Sound,
    sound_state: RecoveredState,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    compare: Callable[..., manifest.Comparison],
) -> None:
    broken = SimpleNamespace(capture=manifest.capture, read=manifest.read, compare=compare)
    monkeypatch.setattr(base, "manifest", broken)
    result = self_test_verdict(self_test([name], sound_state, sound.place.tree(), seed=9))
    assert result.verdict is Verdict.INVALID
    assert f"{name} missed" in result.found


def test_looking_with_the_wrong_eyes_is_found_out(
    sound: Sound, sound_state: RecoveredState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the owner's eyes, and not those of the applications but their records."""
    facts: list[pa.Table] = []

    def run(self: applications.ApplicationsFunctional, state: RecoveredState) -> CheckResult:
        facts[:] = [state.facts]
        return honest(self, state)

    honest = applications.ApplicationsFunctional.run
    monkeypatch.setattr(applications.ApplicationsFunctional, "run", run)
    monkeypatch.setattr(
        applications, "look_at_all", lambda tree, paths: replay(tree, paths, facts[0])
    )
    monkeypatch.setattr(owner_access, "read_as_owners", read_as_ourselves)
    for name in ("files_accessible", "applications_functional"):
        result = self_test_verdict(self_test([name], sound_state, sound.place.tree(), seed=9))
        assert result.verdict is Verdict.INVALID
        assert f"{name} missed" in result.found


def test_the_verdict_of_a_self_test() -> None:
    control = Canary("a", "undamaged copy", b"", True, "")
    caught, missed, nowhere = (Canary("a", "bit_flip", b"x", c, "") for c in (True, False, None))
    table = [
        ([], Verdict.UNVERIFIED),
        ([control], Verdict.INVALID),
        ([control, nowhere], Verdict.INVALID),
        ([control, caught], Verdict.PASS),
        ([control, caught, nowhere], Verdict.PASS),
        ([control, caught, missed], Verdict.INVALID),
        ([replace(control, caught=False), caught], Verdict.INVALID),
        ([control, caught, replace(control, check="b")], Verdict.INVALID),
    ]
    assert [self_test_verdict(rows).verdict for rows, _ in table] == [v for _, v in table]


# --- an ordinary user -----------------------------------------------------------------------------

ordinary = pytest.mark.skipif(
    IS_ROOT, reason="needs an ordinary user: test_the_main_parts_as_nobody runs it"
)


@ordinary
def test_ordinary_user_other_users_files_are_listed_as_not_tested(place: Place) -> None:
    library = Tree.read_only(Path(json.__file__).parent)
    if any(status.st_uid == os.geteuid() for _, status in library.walk()):
        pytest.skip(f"this user owns {library.path}")
    (result,) = run_checks(["files_accessible"], place.state(library, library))
    assert result.verdict is Verdict.UNVERIFIED
    assert "of other users not tested: run the drill as root" in result.found


@ordinary
def test_ordinary_user_unreadable_before_is_unverified_unreadable_after_is_wrong(
    place: Place,
) -> None:
    locked, open_ = place.tree(), place.tree()
    for tree in (locked, open_):
        small_tree(tree)
        for path in [b"", *(path for path, _ in tree.walk())]:
            tree.utime_ns(path, 0, 0)
    locked.chmod(b"plain", 0)
    before = verdicts(place.state(locked, locked))
    assert before["checksums_match"] is Verdict.UNVERIFIED
    after = verdicts(place.state(open_, locked))
    assert after["checksums_match"] is after["files_accessible"] is Verdict.FAIL


@needs_root
def test_the_main_parts_as_nobody(open_path: Path) -> None:
    """The tests that matter most once more, as nobody."""
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "ordinary_user or faithful or sees or one_damage",
    ]
    done = run_as_nobody(open_path, "-m", "pytest", *options, str(Path(__file__).resolve()))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
