"""Every fault does what it says, where it says, and a comparison of manifests sees it."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recovery_pipelines import manifest
from recovery_pipelines.dataset import build_dataset, copy_tree
from recovery_pipelines.errors import PlanError
from recovery_pipelines.faults import edit
from recovery_pipelines.faults.base import Family, Fault, InjectedFault, Layer
from recovery_pipelines.faults.catalogue import inject, repository_faults, source_faults
from recovery_pipelines.manifest import Comparison
from recovery_pipelines.sandbox import Sandbox, Tree

SOURCE, REPOSITORY = source_faults(), repository_faults()
NEEDS_ROOT = {"chown", "owner_access_lost"}
NEEDED = {
    "access control lists": {"acl_change"},
    "extended attributes": {"xattr_change", "xattr_lost"},
}

SEEN_AS = {
    "checksums_match": {"content"},
    "all_files_recovered": {"missing", "unexpected"},
    "directory_structure_intact": {"type", "link_target", "hard_link_group", "missing"},
    "permissions_correct": {"mode", "owner", "xattr", "mtime"},
    "files_accessible": {"mode"},
}
"""Criterion to the kinds of difference that make it fail."""


class Scene:
    """Undamaged data with its manifest, and copies of it to damage."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.folder = folder
        self.sandbox = Sandbox.create(home, "faults")
        self.clean = self.sandbox.tree("clean")
        left_out = build_dataset(self.clean, size_bytes=1_000_000, seed=5)
        self.possible = set(SOURCE)
        if os.geteuid() != 0:
            self.possible -= NEEDS_ROOT
        for feature, kinds in NEEDED.items():
            if feature in left_out:
                self.possible -= kinds
        self.expected = folder / "expected.parquet"
        manifest.capture(self.clean.path, self.expected)
        self.copies = 0

    def copy(self) -> Tree:
        self.copies += 1
        tree = self.sandbox.tree(f"copy-{self.copies}")
        copy_tree(self.clean.path, tree, timeout_seconds=60)
        return tree

    def compare(self, tree: Tree) -> Comparison:
        found = self.folder / f"{tree.path.name}.parquet"
        manifest.capture(tree.path, found)
        return manifest.compare(self.expected, found)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("manifests"))
    with made.sandbox:
        yield made


def seen(compared: Comparison) -> dict[bytes, set[str]]:
    kinds: dict[bytes, set[str]] = {}
    for row in compared.differences.to_pylist():
        kinds.setdefault(row["path"], set()).add(row["kind"])
    return kinds


def expected_kinds(fault: InjectedFault) -> set[str]:
    return set().union(*(SEEN_AS[criterion] for criterion in fault.caught_by))


# --- the catalogue ----------------------------------------------------------------------------


def test_the_catalogue_is_complete() -> None:
    assert {fault.family for fault in SOURCE.values()} == set(Family)
    assert len(SOURCE) >= 24
    assert len(REPOSITORY) >= 17
    for kind, fault in (*SOURCE.items(), *REPOSITORY.items()):
        assert isinstance(fault, Fault)
        assert fault.kind == kind
        assert fault.caught_by or kind == "zeros_to_hole"
        assert set(fault.caught_by) <= set(SEEN_AS)


def documentation() -> str:
    """The tables of docs/faults.md."""
    lines = []
    for title, faults in (("Any tree", SOURCE), ("Repositories", REPOSITORY)):
        lines += [f"### {title}", "", "| kind | family | what is done | caught by |"]
        lines += ["|---|---|---|---|"]
        for fault in faults.values():
            caught_by = ", ".join(f"`{name}`" for name in fault.caught_by) or "nothing: equal data"
            what = getattr(fault, "what", "")
            lines.append(f"| `{fault.kind}` | {fault.family} | {what} | {caught_by} |")
        lines.append("")
    return "\n".join(lines)


def test_the_documentation_lists_the_catalogue() -> None:
    text = (Path(__file__).parents[1] / "docs" / "faults.md").read_text()
    assert documentation() in text, "replace the tables in docs/faults.md by documentation()"


def test_others_can_register_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution on the path with entry points, as a user's package would bring it."""
    (tmp_path / "their_faults.py").write_text(
        "from recovery_pipelines.faults.base import Family\n"
        "class Theirs:\n"
        "    kind, family, caught_by = 'theirs', Family.CONTENT, ('checksums_match',)\n"
        "    def inject(self, tree, layer, rng, avoid=()): return None\n"
        "class Clash(Theirs):\n"
        "    kind = 'bit_flip'\n"
    )
    info = tmp_path / "their_faults-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: their-faults\nVersion: 1\n")
    points = info / "entry_points.txt"
    points.write_text("[recovery_pipelines.faults]\ntheirs = their_faults:Theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(source_faults()) - set(SOURCE) == {"theirs"}
    assert repository_faults().keys() == REPOSITORY.keys()
    points.write_text("[recovery_pipelines.repository_faults]\nx = their_faults:Clash\n")
    sys.path_importer_cache.pop(str(tmp_path), None)
    with pytest.raises(PlanError, match="bit_flip"):
        repository_faults()


# --- faults on any tree -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(SOURCE))
def test_one_fault_alone(scene: Scene, kind: str) -> None:
    """It is seen if and only if it changes data, as what it is, and nothing else differs."""
    for seed in range(2):
        tree = scene.copy()
        done = inject([SOURCE[kind]], tree, Layer.RESTORED_COPY, seed)
        if kind not in scene.possible:
            assert done == []
            return
        (fault,) = done
        assert (fault.kind, fault.layer, fault.family) == (
            kind,
            Layer.RESTORED_COPY,
            SOURCE[kind].family,
        )
        assert (fault.before != fault.after) == fault.changes_data
        compared = scene.compare(tree)
        assert compared.identical == (not fault.changes_data)
        if not fault.changes_data:
            continue
        differs = seen(compared)
        assert differs[fault.path] & expected_kinds(fault)
        allowed = {fault.path, *fault.also}
        strays = {path for path in differs if allowed.isdisjoint([path, *above(path)])}
        if fault.family is Family.RANSOMWARE:  # not silent: directories around it move on
            assert all(differs[path] == {"mtime"} for path in strays)
            assert strays <= {edit.parent(path) for path in allowed}
        else:
            assert strays == set()
        if fault.family is Family.CONTENT:
            assert differs == {fault.path: {"content"}}
        if fault.family is Family.METADATA:
            assert set().union(*differs.values()) <= expected_kinds(fault)


def above(path: bytes) -> list[bytes]:
    """The directories above, without the root."""
    return list(edit.directories_above(path))[:-1]


@pytest.mark.parametrize("seed", range(12))
def test_all_faults_together_are_each_seen(scene: Scene, seed: int) -> None:
    """None hides or undoes another, in any order, and twice over.

    On so small a tree one fault may take the rare places (xattrs, say) from another.
    """
    order = random.Random(seed).sample([*SOURCE.values()], len(SOURCE)) * 2
    tree = scene.copy()
    done = inject(order, tree, Layer.SOURCE, seed)
    assert len({fault.kind for fault in done}) >= len(scene.possible) - 4
    differs = seen(scene.compare(tree))
    for fault in done:
        if fault.changes_data:
            assert differs.get(fault.path, set()) & expected_kinds(fault), fault


def test_the_seed_decides_the_damage(scene: Scene) -> None:
    faults = [*SOURCE.values()]
    one, same, other = scene.copy(), scene.copy(), scene.copy()
    done = inject(faults, one, Layer.SOURCE, 1)
    assert inject(faults, same, Layer.SOURCE, 1) == done
    assert inject(faults, other, Layer.SOURCE, 2) != done
    paths = [scene.folder / f"seed-{number}.parquet" for number in range(3)]
    for tree, path in zip((one, same, other), paths, strict=True):
        manifest.capture(tree.path, path)
    assert manifest.compare(paths[0], paths[1]).identical
    assert not manifest.compare(paths[0], paths[2]).identical


@pytest.mark.parametrize("kind", [*SOURCE, *REPOSITORY])
def test_no_place_no_fault(scene: Scene, kind: str) -> None:
    """An empty tree, and one that only holds an empty file and what can be no place."""
    fault = SOURCE.get(kind) or REPOSITORY[kind]
    scene.copies += 1
    tree = scene.sandbox.tree(f"copy-{scene.copies}")
    assert inject([fault], tree, Layer.SOURCE, 1) == []
    assert list(tree.walk()) == []
    tree.write(b"empty", b"")
    if fault.family is Family.CONTENT:
        assert inject([fault], tree, Layer.SOURCE, 1) == []
        assert tree.read(b"empty") == b""


@pytest.mark.parametrize(
    "kind", ["zero_range", "hole_punch", "block_swap", "duplicated_block", "misdirected_write"]
)
def test_zeros_upon_zeros_are_no_fault(scene: Scene, kind: str) -> None:
    """A damage that would change nothing is not reported as done."""
    scene.copies += 1
    tree = scene.sandbox.tree(f"copy-{scene.copies}")
    for name in (b"one", b"other"):
        tree.write(name, bytes(50_000))
    assert inject([SOURCE[kind]], tree, Layer.SOURCE, 1) == []
    assert tree.read(b"one") == bytes(50_000)


CONTENT = [kind for kind, fault in SOURCE.items() if fault.family is Family.CONTENT]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(CONTENT),
    content=st.binary(min_size=1, max_size=20_000)
    | st.binary(min_size=1, max_size=64).map(lambda piece: piece * 300),
    seed=st.integers(0, 2**32),
)
def test_content_faults_change_what_they_say(
    scene: Scene, kind: str, content: bytes, seed: int
) -> None:
    """Any content: either reported and different, or not reported and untouched; mtime kept."""
    tree = scene.sandbox.tree("property")
    for name, data in ((b"file", content), (b"sibling", b"another file" * 400)):
        tree.write(name, data)
        tree.chmod(name, 0o4711)
        tree.utime_ns(name, 10**18, 10**18 + 7)
    before = {name: tree.read(name) for name in (b"file", b"sibling")}
    done = inject([SOURCE[kind]], tree, Layer.SOURCE, seed)
    after = {name: tree.read(name) for name in before}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {fault.path for fault in done if fault.changes_data}
    for name in before:
        found = tree.stat(name)
        assert (found.st_mtime_ns, found.st_mode & 0o7777) == (10**18 + 7, 0o4711)


def test_nothing_outside_the_tree_changes(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious" * 1000)
    os.utime(outside / "precious", ns=(1, 1))
    os.utime(outside, ns=(2, 2))
    before, after = tmp_path / "before.parquet", tmp_path / "after.parquet"
    manifest.capture(outside, before)
    scene.copies += 1
    tree = scene.sandbox.tree(f"copy-{scene.copies}")
    sibling = scene.sandbox.tree("sibling")
    sibling.write(b"file", b"x" * 9000)
    for number in range(10):
        tree.symlink(os.fsencode(outside / "precious"), b"to-file-%d" % number)
        tree.symlink(os.fsencode(outside), b"to-directory-%d" % number)
    tree.mkdir(b"d", 0o2755)
    tree.write(b"d/file", b"y" * 9000)
    for seed in range(6):
        inject([*SOURCE.values(), *REPOSITORY.values()], tree, Layer.SOURCE, seed)
    manifest.capture(outside, after)
    assert manifest.compare(before, after).identical
    assert sibling.read(b"file") == b"x" * 9000


# --- faults on repositories -------------------------------------------------------------------

LARGEST, NEWEST = b"data/ab/pack-large", b"snapshots/newest"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Tree]:
    with Sandbox.create(tmp_path / "home", "repository") as sandbox:
        tree = sandbox.tree("repository")
        for directory in (b"data", b"data/ab", b"index", b"snapshots"):
            tree.mkdir(directory)
        sizes = {LARGEST: 300_000, b"data/ab/pack-small": 9000, NEWEST: 400}
        sizes |= {b"snapshots/older": 400, b"index/1": 700, b"index/2": 700, b"config": 100}
        rng = random.Random(1)
        for number, (path, size) in enumerate(sizes.items()):
            tree.write(path, rng.randbytes(size))
            tree.chmod(path, 0o400)
            stamp = 10**18 + (10**12 if path == NEWEST else number)
            tree.utime_ns(path, stamp, stamp)
        yield tree


def contents(tree: Tree) -> dict[bytes, bytes]:
    return {path: tree.read(path) for path, found in tree.walk() if found.st_mode & 0o100000}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", sorted(REPOSITORY))
def test_repository_fault(repository: Tree, kind: str, seed: int) -> None:
    """Each hits the file that it says, and only that; names and sizes as in its description."""
    before = contents(repository)
    (fault,) = inject([REPOSITORY[kind]], repository, Layer.REPOSITORY, seed)
    if kind == "chmod_000":
        assert repository.stat(LARGEST).st_mode & 0o777 == 0
        repository.chmod(LARGEST, 0o400)
        assert contents(repository) == before
        return
    after = contents(repository)
    changed = {path for path in before if after.get(path) != before[path]}
    if kind == "index_deleted":
        assert changed == {b"index/1", b"index/2"}
        assert not changed & set(after)
        return
    target = NEWEST if kind.startswith("newest") else LARGEST
    assert changed == {target}
    assert fault.path == target
    size = {
        "truncate": len(before[target]) * 2 // 3,
        "truncate_100_bytes": len(before[target]) - 100,
    }.get(kind, len(before[target]))
    if target in after and kind not in ("append_garbage", "overwritten_by_sibling"):
        assert len(after[target]) == size
        assert repository.stat(target).st_mtime_ns < 10**18 + 2 * 10**12
    gone = {"delete_largest", "rename_bak", "encrypt_and_rename", "newest_deleted"}
    assert (target in after) == (kind not in gone)
    if kind == "rename_bak":
        assert after[LARGEST + b".bak"] == before[LARGEST]
    if kind == "torn_tail":
        assert after[target] == before[target][:-2048] + bytes(2048)
    assert fault.changes_data
