"""Delta Lake and Iceberg tables, made by their own libraries, in a restored tree."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from recovery_pipelines import manifest
from recovery_pipelines.checks import capture_facts, check_named, examine, self_test
from recovery_pipelines.checks.base import RecoveredState, run_check
from recovery_pipelines.checks.self_test import self_test_verdict
from recovery_pipelines.dataset import copy_tree
from recovery_pipelines.sandbox import Sandbox, Tree
from recovery_pipelines.verdict import Verdict

CHECK = check_named("tables_complete")


def rows(start: int, count: int) -> pa.Table:
    numbers = range(start, start + count)
    return pa.table(
        {
            "number": numbers,
            "name": [None if number % 10 == 0 else f"name {number}" for number in numbers],
            "part": [f"a b/{number % 2}" for number in numbers],
        }
    )


def make_delta(root: Path) -> None:
    for start in (0, 100, 200):
        deltalake.write_deltalake(root, rows(start, 100), mode="append", partition_by=["part"])
    deltalake.DeltaTable(root).delete("number < 50")


def make_iceberg(root: Path) -> None:
    warehouse = root.parent
    catalog = SqlCatalog("test", uri="sqlite:///:memory:", warehouse=f"file://{warehouse}")
    catalog.create_namespace("space")
    table = catalog.create_table("space.table", rows(0, 2).schema, location=f"file://{root}")
    for start in (0, 100, 200):
        table.append(rows(start, 100))


MAKERS: dict[str, Callable[[Path], None]] = {"delta": make_delta, "iceberg": make_iceberg}


class Scene:
    """A tree with one table of a kind, and copies of it."""

    def __init__(self, sandbox: Sandbox, kind: str) -> None:
        self.sandbox, self.kind = sandbox, kind
        self.live = sandbox.tree("live")
        MAKERS[kind](self.live.path / "sales" / "table")
        (self.live.path / "readme").write_text("beside the table")
        self.capture()

    def capture(self) -> None:
        self.expected = self.sandbox.path / "expected.parquet"
        manifest.capture(self.live.path, self.expected)
        self.facts = capture_facts(self.live, self.expected, self.sandbox.path / "facts.parquet")

    def copy(self) -> Tree:
        tree = self.sandbox.tree("restored")
        tree.clear()
        copy_tree(self.live.path, tree, timeout_seconds=60)
        return tree

    def look_at(self, tree: Tree) -> RecoveredState:
        return examine(tree, self.expected, self.sandbox.path / "found.parquet", self.facts)

    @property
    def data_files(self) -> list[Path]:
        """Of the newest version, below `restored`."""
        table = self.sandbox.path / "restored" / "sales" / "table"
        if self.kind == "delta":
            return sorted(Path(uri) for uri in deltalake.DeltaTable(table).file_uris())
        return sorted(table.glob("data/*.parquet"))


@pytest.fixture(params=MAKERS)
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Sandbox.create(tmp_path, "tables") as sandbox:
        yield Scene(sandbox, request.param)


def test_a_whole_table_passes_although_the_original_is_gone(scene: Scene) -> None:
    """Iceberg records absolute addresses: the live data must not be what is read."""
    tree = scene.copy()
    shutil.rmtree(scene.live.path / "sales")
    result = run_check(CHECK, scene.look_at(tree))
    assert (result.verdict, result.found) == (Verdict.PASS, "1 tables are whole")


def lose_data(scene: Scene) -> None:
    scene.data_files[0].unlink()


def lose_metadata(scene: Scene) -> None:
    name = {"delta": "_delta_log", "iceberg": "metadata"}[scene.kind]
    shutil.rmtree(scene.sandbox.path / "restored" / "sales" / "table" / name)


def lose_part_of_the_metadata(scene: Scene) -> None:
    table = scene.sandbox.path / "restored" / "sales" / "table"
    if scene.kind == "delta":
        (table / "_delta_log" / "00000000000000000001.json").unlink()
    else:
        max(table.glob("metadata/snap-*.avro"), key=lambda path: path.stat().st_mtime_ns).unlink()


def put_back_an_older_file(scene: Scene) -> None:
    first, second, *_ = scene.data_files
    shutil.copyfile(first, second)
    pq.write_table(pq.read_table(first).slice(1), first)


def damage_a_page(scene: Scene) -> None:
    file = scene.data_files[0]
    content = bytearray(file.read_bytes())
    content[20:28] = bytes(8)
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [lose_data, lose_metadata, lose_part_of_the_metadata, put_back_an_older_file, damage_a_page],
)
def test_a_table_that_is_not_whole_fails(scene: Scene, damage: Callable[[Scene], None]) -> None:
    tree = scene.copy()
    damage(scene)
    result = run_check(CHECK, scene.look_at(tree))
    assert result.verdict is Verdict.FAIL, result
    assert "sales/table" in result.found


def test_a_table_that_was_broken_before_proves_nothing(scene: Scene) -> None:
    scene.copy()
    victim = scene.data_files[0].relative_to(scene.sandbox.path / "restored")
    (scene.live.path / victim).unlink()
    scene.capture()
    result = run_check(CHECK, scene.look_at(scene.copy()))
    assert result.verdict is Verdict.UNVERIFIED
    assert "not whole before the damage either" in result.found


def test_a_tree_without_tables_is_unverified(scene: Scene) -> None:
    shutil.rmtree(scene.live.path / "sales")
    scene.capture()
    assert run_check(CHECK, scene.look_at(scene.copy())).verdict is Verdict.UNVERIFIED


def test_its_self_test(scene: Scene) -> None:
    state = scene.look_at(scene.copy())
    canaries = self_test([CHECK.name], state, scene.sandbox.tree("canaries"), seed=1)
    assert self_test_verdict(canaries).verdict is Verdict.PASS, canaries
