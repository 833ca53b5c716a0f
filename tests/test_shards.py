"""An audit in shards says what one in one piece says, and nothing less than all shards passes."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from recovery_pipelines import manifest
from recovery_pipelines.audits.cover import Pattern, boundary, coarsened, cover
from recovery_pipelines.manifest import store
from recovery_pipelines.manifest.ranges import ancestors, order

SECRET = "the-password-of-the-team"
NAMES = [b"a", b"a-b", b"a.b", b"ab", b"st*r[1]?\\q", "ü".encode(), b"z z", b"-"]


def at(root: Path, path: bytes) -> Path:
    return root / os.fsdecode(path)


def make_tree(root: Path, chance: random.Random, entries: int = 60) -> None:
    """Folders in folders, names that sort oddly or are no text, links of both kinds."""
    root.mkdir(parents=True)
    folders, files = [b""], []
    for number in range(entries):
        name = chance.choice(NAMES) + (b"%d" % number if chance.random() < 0.7 else b"")
        name = b"no\xfftext%d" % number if number % 20 == 7 else name
        path = os.path.join(chance.choice(folders), name)  # noqa: PTH118
        if os.path.lexists(at(root, path)):
            continue
        kind = chance.random()
        if kind < 0.25:
            at(root, path).mkdir()
            folders.append(path)
        elif kind < 0.4 and files:
            at(root, path).hardlink_to(at(root, chance.choice(files)))
        elif kind < 0.45:
            at(root, path).symlink_to("nowhere")
        else:
            at(root, path).write_bytes(chance.randbytes(chance.choice((0, 10, 5000))))
            files.append(path)


def damage_tree(root: Path, chance: random.Random, count: int = 12) -> None:
    """Damage of every kind, anywhere."""
    for number in range(count):
        path = chance.choice([path for path in sorted(root.rglob("*")) if not path.is_symlink()])
        kind = number % 6
        if kind == 0 and path.is_file():
            path.write_bytes(b"other content")
        elif kind == 1:
            path.chmod(0o701 if path.is_dir() else 0o604)
        elif kind == 2:
            new = (path if path.is_dir() else path.parent) / f"-new{number}"
            new.hardlink_to(path) if path.is_file() else new.write_bytes(b"new")
        elif kind == 3 and path.is_file():
            content = path.read_bytes()  # no link any more
            path.unlink()
            path.write_bytes(content)
        elif kind == 4 and path.is_dir():
            shutil.rmtree(path)
            path.write_bytes(b"a file instead of a folder")
        elif path.is_file():
            path.unlink()


def break_folders(file: Path, chance: random.Random) -> None:
    """As if some folders with many entries could not be listed completely."""
    reader = store.Reader(file)
    (table,) = reader.tables()
    paths, errors = table["path"].to_pylist(), table["error"].to_pylist()
    for path in chance.sample(paths, 3):
        errors[paths.index(chance.choice(ancestors(path) or [path]))] = "EIO: cannot be listed"
    index = table.schema.get_field_index("error")
    table = table.set_column(index, table.schema.field(index), pa.array(errors, pa.string()))
    store.write(file, iter([table]), reader.about)


# --- ranges of paths and their patterns -------------------------------------------------------


def matches(patterns: list[Pattern], path: bytes) -> bool:
    """As restic does: a pattern of the path or of a folder above it, `*` within one name only."""
    for pattern, is_prefix in patterns:
        for each in (path, *ancestors(path)):
            same_depth = each.count(b"/") == pattern.count(b"/")
            if each == pattern or (is_prefix and same_depth and each.startswith(pattern) and each):
                return True
    return False


def restored(patterns: list[Pattern], paths: list[bytes]) -> set[bytes]:
    """What a tool brings back: what matches, and the folders above that."""
    found = {path for path in paths if matches(patterns, path)}
    return found | {above for path in found for above in ancestors(path)}


def patterns_for(wanted: manifest.PathRange, types: dict[bytes, str]) -> list[Pattern]:
    """The patterns for a range of a tree, as a tool lists it that knows text alone."""
    children: dict[bytes, dict[bytes, bool]] = {folder: {} for folder in boundary(wanted)}
    for path, kind in types.items():
        above, name = os.path.split(path)
        if path and above in children:
            children[above][name.decode("utf-8", "replace").encode()] = kind == "directory"
    return cover(wanted, children)


def types_of(file: Path) -> dict[bytes, str]:
    table = manifest.read(file, ["path", "type"])
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_patterns_bring_back_a_range_and_little_else(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    make_tree(tmp_path / "tree", chance, 250)
    file = tmp_path / "tree.parquet"
    manifest.capture(tmp_path / "tree", file)
    types = types_of(file)
    lost = chance.choice(sorted(types, key=order)[1:])  # not in the backup, with all beneath it
    there = {p: kind for p, kind in types.items() if lost not in (p, *ancestors(p))}
    ranges = manifest.cut(file, chance.choice((2, 3, 8, 20)))
    assert [sum(path in each for each in ranges) for path in types] == [1] * len(types)
    for wanted in ranges:
        found = restored(patterns_for(wanted, there), list(there))
        assert not {path for path in there if path in wanted} - found
        others = {path for path in found if path not in wanted and types[path] != "directory"}
        assert len({path for path in others if b"no\xfftext" not in path}) <= 1, wanted


def test_a_flat_folder_needs_few_patterns() -> None:
    names = {b"file%06d" % number: False for number in range(20_000)}
    wanted = manifest.PathRange(b"file002345", b"file014567")
    patterns = cover(wanted, {b"": names})
    assert len(patterns) < 50
    assert {n for n in names if matches(patterns, n)} == {n for n in names if n in wanted}
    assert coarsened([b"a/b/c", b"a/b/d", b"a/e/f", b"g/h"], 2) == [b"a", b"g"]


@pytest.mark.parametrize("seed", range(10))
def test_parts_merged_are_the_comparison_in_one_piece(seed: int, tmp_path: Path) -> None:
    """Differences, what is undecided and every count, whatever is damaged and however it is cut,
    where each part sees no more of the tree than is restored for it."""
    chance = random.Random(seed)
    tree, expected, found = (tmp_path / name for name in ("tree", "expected", "found"))
    make_tree(tree, chance, 120)
    manifest.capture(tree, expected)
    if seed % 3:
        damage_tree(tree, chance)
    manifest.capture(tree, found)
    types = types_of(found)
    if seed % 2:
        break_folders(expected, chance)
    whole = manifest.compare(expected, found)
    count = chance.choice((2, 3, 5, 8))
    files = []
    for number, wanted in enumerate(manifest.cut(expected, count)):
        names = [f"{name}-{number}" for name in ("want", "partly", "all", "have", "shard")]
        want, partly, everything, have, shard = (tmp_path / name for name in names)
        part = manifest.take_part(expected, wanted, want, share=count)
        patterns = [*patterns_for(wanted, types), *((path, False) for path in part.linked_outside)]
        copy(tree, restored(patterns, list(types)), partly)
        manifest.capture(partly, everything)
        got = manifest.take_part(everything, wanted, have, like=part)
        alone = manifest.write_part((want, part), (have, got), number, count, expected, shard)
        assert differing(alone) <= differing(whole)
        files.append(shard)
    merged = manifest.merge(files)
    assert merged.differences.to_pylist() == whole.differences.to_pylist()
    assert merged.undecided_entries.equals(whole.undecided_entries)
    assert (merged.counts, merged.entries, merged.verified, merged.identical) == (
        whole.counts,
        whole.entries,
        whole.verified,
        whole.identical,
    )
    assert bool(seed % 3 or seed % 2) is not merged.identical


def differing(comparison: manifest.Comparison) -> set[tuple[bytes, str]]:
    return {(row["path"], row["kind"]) for row in comparison.differences.to_pylist()}


def copy(tree: Path, paths: set[bytes], output: Path) -> None:
    """Some entries of a tree with all that they are, links between them included."""
    output.mkdir()
    listed = b"\0".join(b"./" + path for path in sorted(paths, key=order))
    tar = ["tar", "--format=posix", "--null", "--verbatim-files-from", "--no-recursion"]
    packed = subprocess.run(
        [*tar, "-cT", "-"], cwd=tree, input=listed, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-xpf", "-", "-C", str(output)], input=packed, check=True)
