"""Verifying evidence from the files and a public key alone."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence.chain import CHAIN_NAME, FOLDER_NAME, Chain, Entry, read_chain
from recovery_pipelines.evidence.files import digests
from recovery_pipelines.evidence.keys import key_id
from recovery_pipelines.evidence.signoff import standings_of
from recovery_pipelines.verdict import Verdict


@dataclass
class Report:
    """What a verification found."""

    chain: Chain | None = None
    verified: list[Entry] = field(default_factory=list)
    """Drills whose files are all as they were sealed, but for those removed with a tombstone."""
    removed: list[Entry] = field(default_factory=list)
    """Drills whose files were all removed, as a signed tombstone says."""
    left_out: list[Entry] = field(default_factory=list)
    """Drills of other months than those asked for: their files were not looked at."""
    broken: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """Effective verdict by the number of the drill's entry."""

    @property
    def is_verified(self) -> bool:
        return bool(self.verified) and not self.broken and not self.undecided


def verify(
    home: Path,
    trusted: Ed25519PublicKey,
    *,
    head: str | None = None,
    months: tuple[str, str] | None = None,
    results: Iterable[Path] = (),
) -> Report:
    """Verify the chain in `home`, and the files of every drill (of `months`, both included).

    `trusted` is a key that signed: the first one, or any later one. `head` is the digest of an
    entry that was published elsewhere: without one, missing entries at the end cannot be seen.
    `results` are the folders that hold results, and so ought to be sealed.
    """
    report = Report()
    try:
        chain = report.chain = read_chain(home)
        report.verdicts = {s.drill.seq: s.verdict for s in standings_of(chain)}
    except EvidenceError as error:
        report.broken.append(str(error))
        return report
    except OSError as error:
        path = home / FOLDER_NAME / CHAIN_NAME
        report.undecided.append(f"{path} cannot be read: {error.strerror}")
        return report
    if key_id(trusted) not in chain.key_ids:
        report.broken.append(f"the key {key_id(trusted)} did not sign this chain")
        return report
    if head is not None and head not in {entry.digest for entry in chain.entries}:
        report.broken.append(
            f"the published head {head} is not in the chain: entries were cut off, or replaced"
        )
    removed = chain.removed.keys()
    for entry in chain.drills:
        if months is not None and not months[0] <= entry.month <= months[1]:
            report.left_out.append(entry)
        else:
            _verify_files(home, entry, removed, report)
    sealed = {entry.folder for entry in chain.drills}
    report.undecided += [
        f"{folder} was never sealed: what it says is not evidence"
        for folder in results
        if folder.relative_to(home).as_posix() not in sealed
    ]
    if not report.verified and not report.broken:
        report.undecided.append("no drill was verified")
    return report


def _verify_files(home: Path, entry: Entry, removed: Set[str], report: Report) -> None:
    folder = home / str(entry.folder)
    gone = {name for name in entry.files if f"{entry.folder}/{name}" in removed}
    if gone == entry.files.keys() and not folder.exists():
        report.removed.append(entry)
        return
    try:
        found = digests(folder)
    except EvidenceError as error:
        report.broken.append(str(error))
        return
    except (FileNotFoundError, NotADirectoryError) as error:
        report.broken.append(f"{folder}: {error.strerror}")
        return
    except OSError as error:
        report.undecided.append(f"{folder} cannot be read: {error}")
        return
    wrong = [
        f"{folder / name} {_what(entry.files.get(name), found.get(name))}"
        for name in sorted(entry.files.keys() | found.keys())
        if entry.files.get(name) != found.get(name) and not (name in gone and name not in found)
    ]
    report.broken += wrong
    if not wrong:
        report.verified.append(entry)


def _what(sealed: str | None, found: str | None) -> str:
    if found is None:
        return "is missing"
    return "was added" if sealed is None else "was changed"
