"""One zip for an auditor: the chain, the public key, the files of some months, and an index."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import oscal
from recovery_pipelines.evidence.chain import CHAIN_NAME, FOLDER_NAME, Chain, Entry
from recovery_pipelines.evidence.keys import PUBLIC_NAME
from recovery_pipelines.evidence.mapping import table
from recovery_pipelines.evidence.signoff import standings_of
from recovery_pipelines.files import replacing
from recovery_pipelines.verdict import Verdict

_TIME = (1980, 1, 1, 0, 0, 0)
_INDEX_NAME = "README.md"
_INDEX = """\
# Evidence of recovery drills, {first} to {last}

Chain of {entries} entries; head {seq} `{head}`; key `{key}`.

Compare the head with one that was published elsewhere (each completion notification carries one),
and the key with the id that you were given by other means. Then, in the folder of this file:

    recovery evidence verify --home . --key KEY.pem --head HEAD --from {first} --to {last}

`docs/evidence.md` of recovery_pipelines says how to verify with openssl and coreutils alone, and
what evidence cannot prove. This index and `oscal-assessment-results.json` are not signed: they only
say what the chain says, with the sign-offs in the verdicts.

| entry | month | drill | verdict | started | folder | SHA-256 of the entry |
|---|---|---|---|---|---|---|
{rows}

## What answers what

Names in the fourth column are fields of the signed predicate, or sealed files.

{mapping}
"""


def write_bundle(
    home: Path,
    chain: Chain,
    drills: Sequence[Entry],
    months: tuple[str, str],
    output: Path,
) -> None:
    """Write the zip with the whole chain and the files of `drills`; the same input, same bytes.

    `months` are the first and last, YYYY-MM-01. Raises EvidenceError, and leaves no file, if one
    of the drills' files is not what was sealed.
    """
    public = (home / FOLDER_NAME / PUBLIC_NAME).read_bytes()
    removed = chain.removed
    with (
        replacing(output, many_writers=True) as unfinished,
        zipfile.ZipFile(unfinished, "x", zipfile.ZIP_DEFLATED) as archive,
    ):
        _add(archive, _INDEX_NAME, _index(chain, drills, months).encode())
        results = oscal.assessment_results(chain, drills, months)
        _add(archive, oscal.NAME, (json.dumps(results, indent=1) + "\n").encode())
        _add(archive, f"{FOLDER_NAME}/{CHAIN_NAME}", chain.content)
        _add(archive, f"{FOLDER_NAME}/{PUBLIC_NAME}", public)
        for entry in drills:
            for name, digest in entry.files.items():
                if f"{entry.folder}/{name}" in removed:
                    continue
                content = (home / str(entry.folder) / name).read_bytes()
                if hashlib.sha256(content).hexdigest() != digest:
                    raise EvidenceError(f"{home / str(entry.folder) / name} was changed")
                _add(archive, f"{entry.folder}/{name}", content)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o644 << 16
    archive.writestr(member, content)


def _index(chain: Chain, drills: Sequence[Entry], months: tuple[str, str]) -> str:
    rows, verdicts = [], {s.drill.seq: s.verdict for s in standings_of(chain)}
    for month in _months(*months):
        found = [entry for entry in drills if entry.month == month]
        rows += [_row(entry, verdicts[entry.seq]) for entry in found] or [
            f"| - | {month[:7]} | none sealed ||||| "
        ]
    first, last = (month[:7] for month in months)
    return _INDEX.format(
        first=first,
        last=last,
        entries=len(chain.entries),
        seq=chain.head.seq,
        head=chain.head.digest,
        key=chain.head.key_id,
        rows="\n".join(rows),
        mapping=table(),
    )


def _row(entry: Entry, verdict: Verdict) -> str:
    predicate = entry.predicate
    cells = (
        entry.seq,
        entry.month[:7],
        predicate["drill"]["drill"],
        verdict,
        predicate["started_at"],
        f"`{entry.folder}`",
        f"`{entry.digest}`",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _months(first: str, last: str) -> Iterator[str]:
    month = first
    while month <= last:
        yield month
        year, number = int(month[:4]), int(month[5:7])
        month = f"{year + number // 12:04}-{number % 12 + 1:02}-01"
