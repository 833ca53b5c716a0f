"""The real backup tools bring back every generation exactly, and refuse to lie when they cannot.

Everything here runs the real tools. A tool that is not on this machine skips its tests, with the
reason printed.
"""

import contextlib
import copy
import errno
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recovery_pipelines import manifest
from recovery_pipelines.dataset import build_dataset, change_dataset
from recovery_pipelines.engines.base import Engine, Snapshot, engine_class
from recovery_pipelines.engines.borg import BorgEngine
from recovery_pipelines.engines.restic import ResticEngine
from recovery_pipelines.engines.rsync import RsyncEngine
from recovery_pipelines.engines.tar import TarEngine
from recovery_pipelines.errors import DrillTimeout, EngineError
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.faults.catalogue import inject, repository_faults
from recovery_pipelines.sandbox import Sandbox, Tree
from tests.nobody import as_nobody, copy_interpreter, give_to_nobody

Kind = type[TarEngine] | type[ResticEngine] | type[BorgEngine] | type[RsyncEngine]
AnyEngine = TarEngine | ResticEngine | BorgEngine | RsyncEngine
TOOLS: dict[Kind, tuple[str, ...]] = {
    TarEngine: ("tar", "zstd"),
    ResticEngine: ("restic",),
    BorgEngine: ("borg",),
    RsyncEngine: ("rsync",),
}
ENGINES = [
    pytest.param(
        engine,
        id=engine.name,
        marks=[
            pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not on this machine")
            for tool in tools
        ],
    )
    for engine, tools in TOOLS.items()
]
every = pytest.mark.parametrize("kind", ENGINES)
tar_only = pytest.mark.parametrize("kind", ENGINES[:1])
restic_only = pytest.mark.parametrize("kind", ENGINES[1:2])
borg_only = pytest.mark.parametrize("kind", ENGINES[2:3])
rsync_only = pytest.mark.parametrize("kind", ENGINES[3:])
with_secret = pytest.mark.parametrize("kind", ENGINES[1:3])
SECRET = {ResticEngine: "_password", BorgEngine: "_passphrase"}

RESTIC_LOSES_LINK_TARGETS = shutil.which("restic") is not None and (
    re.search(
        r"restic 0\.(\d|1[0-5])\.",
        subprocess.run(["restic", "version"], capture_output=True, text=True).stdout,
    )
    is not None
)


@dataclass
class History:
    """A repository with a full backup and three increments, and the truth about each."""

    engine: AnyEngine
    source: Tree
    snapshots: list[Snapshot]
    manifests: list[Path]
    repository: Tree
    home: Path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with Sandbox.create(self.home, "staging") as sandbox:
            yield sandbox.tree("staging").path


@pytest.fixture(scope="module", params=ENGINES)
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    home = tmp_path_factory.mktemp("home")
    with Sandbox.create(home, "history") as sandbox:
        source, repository = sandbox.tree("source"), sandbox.tree("repository")
        left_out = build_dataset(source, size_bytes=2_000_000, seed=3)
        if left_out:
            warnings.warn(f"not covered here: {', '.join(left_out)}", stacklevel=1)
        engine: AnyEngine = request.param(
            repository.path, sandbox.tree("work").path, timeout_seconds=lambda: 120.0
        )
        engine.init()
        snapshots: list[Snapshot] = []
        manifests: list[Path] = []
        for generation in range(4):
            if generation:
                assert change_dataset(source, seed=generation).total > 0
            truth = sandbox.path / f"{generation}.parquet"
            assert manifest.capture(source.path, truth).complete
            manifests.append(truth)
            snapshots.append(engine.backup(source.path, snapshots[-1] if snapshots else None))
        yield History(engine, source, snapshots, manifests, repository, home)


def differences(expected: Path, tree: Path) -> list[dict[str, object]]:
    found = tree.parent / f"{tree.name}-found.parquet"
    manifest.capture(tree, found)
    compared = manifest.compare(expected, found)
    assert compared.undecided == 0
    assert compared.entries > 0
    rows: list[dict[str, object]] = compared.differences.to_pylist()
    return rows


def make(kind: Kind, home: Path, environment: dict[str, str] | None = None) -> AnyEngine:
    """An engine with a new repository; `home/source` holds one file."""
    for name in ("repository", "work", "source", "staging"):
        (home / name).mkdir()
    (home / "source" / "file").write_bytes(b"content")
    engine = kind(
        home / "repository", home / "work", timeout_seconds=60, environment=environment or {}
    )
    engine.init()
    return engine


def as_ordinary_user(home: Path, action: Callable[[], object]) -> None:
    """Run as somebody who is not root and owns all that is in `home`."""
    if os.geteuid() == 0:
        give_to_nobody(home)
    as_nobody(action)


# --- what must come back ----------------------------------------------------------------------


@pytest.mark.parametrize("generation", range(4))
def test_every_generation_comes_back_exactly(history: History, generation: int) -> None:
    with history.staging() as staging:
        history.engine.restore(history.snapshots[generation], staging)
        assert differences(history.manifests[generation], staging) == []


@pytest.mark.parametrize("generation", [0, 3])
@pytest.mark.parametrize("count", [1, 40])
def test_selected_paths_come_back_exactly(history: History, generation: int, count: int) -> None:
    table = manifest.read(history.manifests[generation])
    rows = [row for row in table.to_pylist() if row["type"] != "directory"]
    awkward = [row["path"] for row in rows if row["path"].startswith(b"awkward")]
    rng = random.Random(generation)
    paths = rng.sample([row["path"] for row in rows], count) + (awkward if count > 1 else [])
    with history.staging() as staging:
        history.engine.restore(history.snapshots[generation], staging, paths)
        found = staging.parent / "found.parquet"
        manifest.capture(staging, found)
        wanted, kept = (staging.parent / f"{name}.parquet" for name in ("wanted", "kept"))
        manifest.subset(history.manifests[generation], paths, wanted)
        manifest.subset(found, paths, kept)
        compared = manifest.compare(wanted, kept)
        assert compared.differences.to_pylist() == []
        assert compared.entries == len(set(paths))
        assert len(manifest.read(found)) < len(table), "a selective restore brought everything"


def test_a_selected_directory_and_root_have_their_metadata(history: History) -> None:
    table = manifest.read(history.manifests[3], ["path", "type"])
    paths = [row["path"] for row in table.to_pylist() if row["type"] == "directory"]
    with history.staging() as staging:
        history.engine.restore(history.snapshots[3], staging, paths)
        for path in paths:
            live, restored = (
                os.lstat(os.fsencode(root) + b"/" + path) for root in (history.source.path, staging)
            )
            assert (live.st_mode, live.st_mtime_ns) == (restored.st_mode, restored.st_mtime_ns)


def test_a_path_the_snapshot_does_not_hold_is_absent_not_invented(history: History) -> None:
    with history.staging() as staging:
        history.engine.restore(history.snapshots[3], staging, [b"warehouse/no-such-file"])
        assert not (staging / "warehouse" / "no-such-file").exists()


def test_the_ledger_and_the_repository_agree(history: History) -> None:
    engine, snapshots = history.engine, history.snapshots
    assert isinstance(engine, Engine)
    assert engine_class(engine.name) is type(engine)
    assert engine.name in engine.version()
    assert engine.snapshot_ids() == [snapshot.snapshot_id for snapshot in snapshots]
    assert [snapshot.kind for snapshot in snapshots] == ["full"] + ["incremental"] * 3
    assert [snapshot.parent_id for snapshot in snapshots[1:]] == engine.snapshot_ids()[:-1]
    assert len({snapshot.digest for snapshot in snapshots}) == len(snapshots)
    assert all(0 < each.added_bytes < snapshots[0].added_bytes for each in snapshots[1:])
    assert [each.created_at for each in snapshots] == sorted(each.created_at for each in snapshots)
    engine.check()
    engine.full_check(snapshots)


_STEPS = ("file", "directory", "remove", "move", "move", "swap", "edit", "link", "chmod", "xattr")


def _step(root: Path, rng: random.Random) -> None:
    """One random change; overlapping renames of directories are what breaks plain GNU tar."""
    directories = [Path(path) for path, _, _ in os.walk(root)]
    files = [Path(path) / name for path, _, names in os.walk(root) for name in names]
    step, new = rng.choice(_STEPS), rng.choice(directories) / rng.choice("abcdefgh")
    inner, some = directories[1:], rng.choice(files) if files else None
    try:
        if step == "directory":
            new.mkdir()
            (new / "x").write_bytes(rng.randbytes(8))
        elif step == "file" and not new.exists():
            new.write_bytes(rng.randbytes(8))
        elif step == "remove" and some:
            some.unlink() if rng.random() < 0.7 or not inner else shutil.rmtree(rng.choice(inner))
        elif step == "move" and (inner or some) and not new.exists():
            rng.choice([*inner, *([some] if some else [])]).rename(new)
        elif step == "swap" and len(inner) > 1:
            one, other = rng.sample(inner, 2)
            one.rename(root / "swap")
            other.rename(one)
            (root / "swap").rename(other)
        elif step == "edit" and some:
            some.write_bytes(rng.randbytes(8))
        elif step == "link" and some and not new.exists():
            new.hardlink_to(some)
        elif step == "chmod" and some:
            rng.choice([some, *inner]).chmod(rng.choice([0o700, 0o755, 0o2755]))
        elif step == "xattr" and some:
            os.setxattr(some, "user.note", rng.randbytes(4))
    except OSError as impossible:  # into itself, or over something: the next step is another one
        assert impossible.errno in (errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)


@tar_only
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(min_value=0, max_value=2**32))
@example(seed=488)
def test_chains_with_overlapping_renames_come_back_exactly(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    home, rng = tmp_path_factory.mktemp("chain"), random.Random(seed)
    engine, source = make(kind, home), home / "source"
    snapshots: list[Snapshot] = []
    for generation in range(3):
        for _ in range(10 if generation else 25):
            _step(source, rng)
        truth = home / f"{generation}.parquet"
        manifest.capture(source, truth, workers=1)
        snapshots.append(engine.backup(source, snapshots[-1] if snapshots else None))
        staging = home / f"restored-{generation}"
        staging.mkdir()
        engine.restore(snapshots[-1], staging)
        assert differences(truth, staging) == []


@every
def test_what_directories_pass_on_to_new_entries_is_not_restored(
    kind: Kind, tmp_path: Path
) -> None:
    """New entries without the set-gid bit and the ACL of their directory come back without."""
    engine, shared = make(kind, tmp_path), tmp_path / "source" / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    acl = ["setfacl", "-m", "u:65533:rwx,d:u:65533:rwx", str(shared)]
    if shutil.which("setfacl") is None or subprocess.run(acl, capture_output=True).returncode:
        pytest.skip("no setfacl, or this file system holds no access control lists")
    full = engine.backup(tmp_path / "source", None)
    (shared / "inner").mkdir()
    (shared / "file").write_bytes(b"x")
    subprocess.run(["setfacl", "-b", shared / "inner", shared / "file"], check=True)
    (shared / "inner").chmod(0o700)
    assert not os.listxattr(shared / "inner")
    assert (shared / "inner").stat().st_mode & 0o7777 == 0o700
    increment = engine.backup(tmp_path / "source", full)
    manifest.capture(tmp_path / "source", tmp_path / "truth.parquet")
    paths = [b"shared", b"shared/inner", b"shared/file"]
    for name, selection in (("all", None), ("selected", paths)):
        (tmp_path / name).mkdir()
        engine.restore(increment, tmp_path / name, selection)
        found = differences(tmp_path / "truth.parquet", tmp_path / name)
        assert [row for row in found if row["path"] in paths] == []


@every
def test_an_ordinary_user_backs_up_and_restores_his_own_tree(
    kind: Kind, open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = open_path
    if kind is RsyncEngine:  # it captures its digest with this interpreter
        monkeypatch.setattr(sys, "executable", str(copy_interpreter(home / "python")))

    def prepare() -> Engine:
        engine = make(kind, home)
        locked = home / "source" / "locked"
        (locked / "inner").mkdir(parents=True)
        (locked / "inner" / "note").write_bytes(b"1")
        (home / "source" / "private").write_bytes(b"2")
        (home / "source" / "private").chmod(0o400)
        for path, mode in ((locked / "inner", 0o500), (locked, 0o555), (home / "source", 0o555)):
            path.chmod(mode)
        return engine

    def drill() -> None:
        engine = prepare()
        full = engine.backup(home / "source", None)
        (home / "source").chmod(0o755)
        (home / "source" / "second").write_bytes(b"3")
        (home / "source").chmod(0o555)
        increment = engine.backup(home / "source", full)
        engine.full_check([full, increment])
        engine.restore(increment, home / "staging")
        (home / "selected").mkdir()
        engine.restore(increment, home / "selected", [b"locked/inner/note", b"second"])
        assert (home / "selected/locked/inner/note").read_bytes() == b"1"
        assert (home / "selected/second").read_bytes() == b"3"

    as_ordinary_user(home, drill)
    manifest.capture(home / "source", home / "truth.parquet")
    assert differences(home / "truth.parquet", home / "staging") == []


@restic_only
@pytest.mark.skipif(not RESTIC_LOSES_LINK_TARGETS, reason="this restic keeps any symlink target")
def test_what_this_restic_loses_is_seen_by_the_manifest(kind: Kind, tmp_path: Path) -> None:
    engine, source = make(kind, tmp_path), tmp_path / "source"
    (source / "link").symlink_to(os.fsdecode(b"non-utf8-\xe9"))
    manifest.capture(source, tmp_path / "truth.parquet")
    engine.restore(engine.backup(source, None), tmp_path / "staging")
    found = differences(tmp_path / "truth.parquet", tmp_path / "staging")
    assert [(row["path"], row["kind"]) for row in found] == [(b"link", "link_target")]


# --- what must be refused ---------------------------------------------------------------------


@every
@pytest.mark.parametrize("staging", ["occupied", "absent"])
def test_staging_must_be_an_empty_directory(kind: Kind, tmp_path: Path, staging: str) -> None:
    engine = make(kind, tmp_path)
    snapshot = engine.backup(tmp_path / "source", None)
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").write_bytes(b"precious")
    with pytest.raises(EngineError, match="staging directory"):
        engine.restore(snapshot, tmp_path / staging)
    assert (tmp_path / "occupied" / "file").read_bytes() == b"precious"


@every
def test_a_source_that_cannot_be_read_is_no_backup(kind: Kind, open_path: Path) -> None:
    def drill() -> None:
        engine = make(kind, open_path)
        (open_path / "source" / "secret").write_bytes(b"x")
        (open_path / "source" / "secret").chmod(0)
        with pytest.raises(EngineError, match=r"(?s)exit code (1|2|3|23) .*secret"):
            engine.backup(open_path / "source", None)

    as_ordinary_user(open_path, drill)


@tar_only
def test_a_file_that_changes_while_it_is_read_is_no_backup(kind: Kind, tmp_path: Path) -> None:
    engine = make(kind, tmp_path)
    growing = tmp_path / "source" / "growing"
    growing.write_bytes(os.urandom(32 << 20))
    finished = threading.Event()

    def grow() -> None:
        with growing.open("ab") as file:
            while not finished.wait(0.001):
                file.write(b"more")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(EngineError, match=r"exit code 1 \(a file changed"):
            engine.backup(tmp_path / "source", None)
    finally:
        finished.set()
        writer.join()
    assert not any((tmp_path / "repository").iterdir())
    assert not any((tmp_path / "work").iterdir())
    with pytest.raises(EngineError, match="nothing to check"):
        engine.check()


@every
def test_time_is_asked_for_at_each_run_and_kept(kind: Kind, tmp_path: Path) -> None:
    engine = make(kind, tmp_path)
    left = [60.0, 60.0, 0.001]
    engine._timeout_seconds = lambda: left.pop(0)
    snapshots = [engine.backup(tmp_path / "source", None)]
    if kind in (TarEngine, RsyncEngine):
        snapshots.append(engine.backup(tmp_path / "source", snapshots[0]))
    with pytest.raises(DrillTimeout):
        engine.backup(tmp_path / "source", snapshots[-1])
    assert not list((tmp_path / "repository").glob("*.partial"))


@every
def test_a_ledger_that_the_repository_does_not_match_is_refused(kind: Kind, tmp_path: Path) -> None:
    engine = make(kind, tmp_path)
    snapshot = engine.backup(tmp_path / "source", None)
    with pytest.raises(EngineError, match="nothing to check"):
        engine.full_check([])
    with pytest.raises(EngineError, match="not in the repository"):
        engine.full_check([snapshot, replace(snapshot, snapshot_id="0" * 60 + "-0000")])
    with pytest.raises(EngineError, match="recorded"):
        engine.full_check([replace(snapshot, digest="0" * 32)])
    with pytest.raises(EngineError):
        engine.restore(replace(snapshot, snapshot_id="0" * 60 + "-0000"), tmp_path / "staging")
    with pytest.raises(EngineError):
        engine.backup(tmp_path / "source", replace(snapshot, snapshot_id="0" * 60 + "-0000"))


@tar_only
def test_a_broken_chain_is_refused(kind: Kind, tmp_path: Path) -> None:
    engine = make(kind, tmp_path)
    full = engine.backup(tmp_path / "source", None)
    increment = engine.backup(tmp_path / "source", full)
    with pytest.raises(EngineError, match="already has the increment"):
        engine.backup(tmp_path / "source", full)
    archive = tmp_path / "repository" / f"{full.snapshot_id}.tar.zst"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    for broken in (engine.check, lambda: engine.full_check([increment, full])):
        with pytest.raises(EngineError, match=full.snapshot_id):
            broken()
    archive.unlink()
    with pytest.raises(EngineError, match=f"builds upon .*{full.snapshot_id}.*missing"):
        engine.full_check([increment])
    with pytest.raises(EngineError, match="missing"):
        engine.restore(increment, tmp_path / "staging")
    with pytest.raises(EngineError, match="missing"):
        engine.backup(tmp_path / "source", increment)


@tar_only
def test_a_parent_from_the_future_is_refused(kind: Kind, tmp_path: Path) -> None:
    engine = make(kind, tmp_path)
    full = engine.backup(tmp_path / "source", None)
    forged = replace(full, created_at=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(EngineError, match="in the future"):
        engine.backup(tmp_path / "source", forged)
    engine.backup(tmp_path / "source", full)


@tar_only
@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not on this machine")
def test_a_backup_made_with_a_fast_clock_says_so(kind: Kind, tmp_path: Path) -> None:
    shown = subprocess.run(["faketime", "-f", "+1h", "env"], capture_output=True, text=True).stdout
    fast = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    make(kind, tmp_path)
    fast_clock = {name: fast[name] for name in ("LD_PRELOAD", "FAKETIME")}
    places = (tmp_path / "repository", tmp_path / "work")
    full = kind(*places, timeout_seconds=60, environment=fast_clock).backup(
        tmp_path / "source", None
    )
    assert full.created_at > datetime.now(UTC) + timedelta(minutes=50)
    with pytest.raises(EngineError, match="in the future"):
        kind(*places, timeout_seconds=60).backup(tmp_path / "source", full)


@with_secret
def test_without_its_password_or_repository_it_is_refused(kind: Kind, tmp_path: Path) -> None:
    engine = make(kind, tmp_path)
    snapshot = engine.backup(tmp_path / "source", None)
    password = getattr(engine, SECRET[kind])
    setattr(engine, SECRET[kind], "guess")
    with pytest.raises(EngineError, match=r"wrong password|passphrase .* is incorrect"):
        engine.restore(snapshot, tmp_path / "staging")
    setattr(engine, SECRET[kind], password)
    (tmp_path / "repository").rename(tmp_path / "lost")
    (tmp_path / "repository").mkdir()
    for broken in (engine.check, engine.snapshot_ids, lambda: engine.full_check([snapshot])):
        with pytest.raises(EngineError, match=r"(?i)exit code (1|2|10) .*(config|repository)"):
            broken()


@with_secret
def test_the_password_is_in_no_argument_environment_or_file(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of the tool's name records how it is started, then becomes the real one."""
    spy = tmp_path / "bin" / kind.program
    spy.parent.mkdir()
    spy.write_text(
        f"#!/bin/sh\ntr '\\0' '\\n' </proc/self/cmdline >>{tmp_path}/seen\n"
        f'printf "%s\\n" "$0" "$@" >>{tmp_path}/seen\nenv >>{tmp_path}/seen\n'
        f'exec {shutil.which(kind.program)} "$@"\n'
    )
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")
    engine = make(kind, tmp_path)
    snapshot = engine.backup(tmp_path / "source", None)
    engine.full_check([snapshot])
    engine.restore(snapshot, tmp_path / "staging")
    password = getattr(engine, SECRET[kind])
    seen = (tmp_path / "seen").read_text()
    assert "init" in seen and "check" in seen
    assert "--no-cache" in seen or "BORG_BASE_DIR" in seen
    assert "latest" not in seen
    assert len(password) > 30
    assert password not in seen
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or password.encode() not in path.read_bytes()


# --- damage to the repository -----------------------------------------------------------------


def test_no_damage_to_the_repository_passes_unseen(history: History) -> None:
    """Each kind of damage: a full check that finds it, or else a restore that is right.

    docs/engines.md has the table that this prints (`pytest -s`).
    """
    outcomes: dict[str, tuple[str, str]] = {}
    for kind, fault in repository_faults().items():
        with Sandbox.create(history.home, "damaged") as sandbox:
            damaged, staging = sandbox.tree("damaged"), sandbox.tree("staging").path
            original = f"{history.repository.path}/."
            subprocess.run(["cp", "--archive", original, damaged.path], check=True)
            if not inject([fault], damaged, Layer.REPOSITORY, 1):
                continue
            engine = copy.copy(history.engine)
            engine.repository = damaged.path
            try:
                engine.full_check(history.snapshots)
                checked = "silent"
            except EngineError:
                checked = "found"
            try:
                engine.restore(history.snapshots[-1], staging)
                restored = "wrong" if differences(history.manifests[-1], staging) else "right"
            except EngineError:
                restored = "refused"
            outcomes[kind] = (checked, restored)
    for kind, (checked, restored) in sorted(outcomes.items()):
        sys.stdout.write(
            f"{history.engine.name:8}{kind:25} full check: {checked:8} restore: {restored}\n"
        )
    assert len(outcomes) >= 15
    missed = {kind for kind, outcome in outcomes.items() if outcome == ("silent", "wrong")}
    assert missed == set()


def _segments(engine: AnyEngine) -> list[Path]:
    """borg's data files, oldest first."""
    files = [path for path in (engine.repository / "data").rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: int(path.name))


@borg_only
@pytest.mark.parametrize("lost", [1, 4])
def test_newest_segments_that_a_new_client_does_not_miss_are_missed(
    kind: Kind, tmp_path: Path, lost: int
) -> None:
    """borg itself finds nothing wrong then: the recorded ids do."""
    engine = make(kind, tmp_path)
    snapshots: list[Snapshot] = []
    for generation in range(3):
        (tmp_path / "source" / "file").write_bytes(os.urandom(5000 + generation))
        snapshots.append(engine.backup(tmp_path / "source", snapshots[-1] if snapshots else None))
    for path in _segments(engine)[-lost:]:
        path.unlink()
    with pytest.raises(EngineError):
        engine.full_check(snapshots)
    with pytest.raises(EngineError):
        engine.restore(snapshots[-1], tmp_path / "staging")


@borg_only
def test_zeros_that_a_repair_put_in_are_no_restore(kind: Kind, tmp_path: Path) -> None:
    engine, staging = make(kind, tmp_path), tmp_path / "staging"
    assert isinstance(engine, BorgEngine)
    (tmp_path / "source" / "big").write_bytes(os.urandom(300_000))
    snapshot = engine.backup(tmp_path / "source", None)
    largest = max(_segments(engine), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[100_000] ^= 1
    largest.write_bytes(content)
    answer = {"BORG_CHECK_I_KNOW_WHAT_I_AM_DOING": "YES"}
    engine._environment |= answer
    with contextlib.suppress(EngineError):  # exit code 1: it repaired something
        engine._borg("repair", "check", "--repair", str(engine.repository))
    engine.check()
    for broken in (
        lambda: engine.full_check([snapshot]),
        lambda: engine.restore(snapshot, staging),
    ):
        with pytest.raises(EngineError, match="not in the repository"):
            broken()


@rsync_only
def test_a_change_of_equal_size_and_time_is_not_backed_up_and_the_manifest_says_so(
    kind: Kind, tmp_path: Path
) -> None:
    engine, file = make(kind, tmp_path), tmp_path / "source" / "file"
    full = engine.backup(tmp_path / "source", None)
    before = file.stat()
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    manifest.capture(tmp_path / "source", tmp_path / "truth.parquet")
    increment = engine.backup(tmp_path / "source", full)
    engine.full_check([full, increment])
    engine.restore(increment, tmp_path / "staging")
    found = differences(tmp_path / "truth.parquet", tmp_path / "staging")
    assert [(row["path"], row["kind"]) for row in found] == [(b"file", "content")]
