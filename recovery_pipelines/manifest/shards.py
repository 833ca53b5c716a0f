"""The comparison of two manifests too large for one worker, in shards that workers share out.

A shard is a range of path_id, or of paths where each worker has only its part of the tree. Its
findings are a Parquet file, so that it can be made anywhere; `merge` gives the verdict of all of
them, exactly as if the manifests were compared in one piece.
"""

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing
from recovery_pipelines.manifest.comparison import Comparison, Findings, compare_shard
from recovery_pipelines.manifest.ranges import Part
from recovery_pipelines.manifest.store import read_info

_ABOUT = b"recovery_shard"
_SCHEMA = pa.schema(
    [
        ("what", pa.string()),
        ("path", pa.binary()),
        ("kind", pa.binary()),
        ("expected", pa.binary()),
        ("found", pa.binary()),
        ("path_id", pa.uint64()),
        ("expected_group", pa.uint64()),
        ("found_group", pa.uint64()),
    ]
)
_Row = dict[str, Any]


def write_shard(
    expected: Path,
    found: Path,
    number: int,
    count: int,
    output: Path,
    *,
    ignore: Collection[str] = (),
) -> None:
    """Compare shard `number` (from 0) of `count`, a power of two, and keep what was found.

    Raises RecoveryError as `compare` does.
    """
    findings = compare_shard(expected, found, number, count, ignore=ignore)
    _write(findings, number, count, read_info(expected), read_info(found)["digest"], output)


def write_part(
    expected: tuple[Path, Part],
    found: tuple[Path, Part],
    number: int,
    count: int,
    whole: Path,
    output: Path,
    *,
    ignore: Collection[str] = (),
) -> Comparison:
    """As `write_shard`, for a range of paths: `expected` is its part of the manifest `whole`.

    Returns what can be told of the part alone: hard links into other parts are judged by `merge`.
    """
    findings = compare_shard(expected[0], found[0], 0, 1, ignore=ignore)
    findings.broken["unexpected"] += expected[1].broken_above
    findings.broken["missing"] += found[1].broken_above
    _write(findings, number, count, read_info(whole), "", output)
    return findings.result(findings.compared)


def _write(
    findings: Findings, number: int, count: int, wanted: dict[str, Any], found: str, output: Path
) -> None:
    about = {
        "shard": number,
        "shards": count,
        "expected": wanted["digest"],
        "found": found,
        "entries": wanted["entries"],
        "ignore": sorted(findings.ignore),
        "compared": findings.compared,
        "verified": findings.verified,
    }
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about).encode()})
    table = pa.Table.from_pylist(list(_rows(findings)), schema)
    with replacing(output) as unfinished:
        pq.write_table(table, unfinished, write_page_checksum=True)


def merge(shards: Sequence[Path], *, lacking: bool = False) -> Comparison:
    """The comparison of the whole manifests; with `lacking` of what the given shards hold.

    Raises RecoveryError unless these are shards of one comparison, and all of them, each once.
    """
    abouts, parts = zip(*map(_read, shards), strict=True)
    same = ("shards", "expected", "found", "entries", "ignore")
    if len({json.dumps([about[name] for name in same]) for about in abouts}) > 1:
        raise RecoveryError("these shards are not of one comparison: make them anew")
    if lacking:
        return Findings.merged(parts).result(sum(about["compared"] for about in abouts))
    have = sorted(about["shard"] for about in abouts)
    if have != list(range(abouts[0]["shards"])):
        raise RecoveryError(
            f"the verdict needs each of the shards 0 to {abouts[0]['shards'] - 1} once; "
            f"given: {', '.join(map(str, have))}"
        )
    return Findings.merged(parts).result(abouts[0]["entries"])


def _rows(findings: Findings) -> Iterator[_Row]:
    columns = (findings.paths, findings.kinds, findings.expected, findings.found)
    for path, kind, expected, found in zip(*columns, strict=True):
        yield {
            "what": "difference",
            "path": path,
            "kind": kind,
            "expected": expected,
            "found": found,
        }
    for path, reason in findings.undecided.items():
        yield {"what": "undecided", "path": path, "found": os.fsencode(reason)}
    for kind_name, entries in findings.one_sided.items():
        for path, type_name in entries:
            yield {"what": kind_name, "path": path, "kind": type_name.encode()}
    for kind_name, paths in findings.broken.items():
        for path in paths:
            yield {"what": f"broken {kind_name}", "path": path}
    for ids, expected_groups, found_groups, paths in findings.links:
        for place, path in enumerate(paths):
            yield {
                "what": "link",
                "path": path,
                "path_id": int(ids[place]),
                "expected_group": int(expected_groups[place]),
                "found_group": int(found_groups[place]),
            }


def _read(path: Path) -> tuple[dict[str, Any], Findings]:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads(table.schema.metadata[_ABOUT])
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as problem:
        raise RecoveryError(f"{path} is no shard of a comparison: {problem}") from None
    findings = Findings(frozenset(about["ignore"]))
    findings.compared, findings.verified = about["compared"], about["verified"]
    links = []
    for row in table.to_pylist():
        what, place = row["what"], row["path"]
        if what == "difference":
            findings.paths.append(place)
            findings.kinds.append(row["kind"])
            findings.expected.append(row["expected"])
            findings.found.append(row["found"])
        elif what == "undecided":
            findings.undecided[place] = os.fsdecode(row["found"])
        elif what == "link":
            links.append(row)
        elif what.startswith("broken "):
            findings.broken[what.removeprefix("broken ")].append(place)
        else:
            findings.one_sided[what].append((place, row["kind"].decode()))
    if links:
        names = ("path_id", "expected_group", "found_group")
        ids, left, right = (np.array([row[name] for row in links], "<u8") for name in names)
        findings.links.append((ids, left, right, [row["path"] for row in links]))
    return about, findings
