"""Archives made to do harm: each is restored by every route, and the world around is watched.

The archives are made, not collected: each function below writes one. They aim at a folder
`outside` of the sandbox, by absolute names, `..`, links, and headers that no honest tool writes.
"""

import io
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from campaigns.history import new_run_id
from recovery_pipelines import manifest
from recovery_pipelines.audits.reader import TreeReader
from recovery_pipelines.audits.repositories import open_repository
from recovery_pipelines.engines.base import Snapshot
from recovery_pipelines.engines.borg import BorgEngine
from recovery_pipelines.engines.restic import ResticEngine
from recovery_pipelines.engines.rsync import RsyncEngine
from recovery_pipelines.engines.tar import TarEngine
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.matrix.truth import look
from recovery_pipelines.plan.repositories import Repository
from recovery_pipelines.sandbox import Sandbox

Row = dict[str, Any]
LIMIT_SECONDS = 20.0
"""Of processor time, so that a busy machine is no hang; one that waits is stopped later."""
_STOP_SECONDS = 180.0
_DEPTH = 1200
_BLOCK = 512
_PASSWORD = "HOSTILE_REPOSITORY_PASSWORD"
_OURS = {"audit", "staging", "archives", "work", "repository", "scratch", ".recovery-sandbox"}


def _member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.mode, made.mtime = kind, 0o644, 1_700_000_000
    if kind == tarfile.DIRTYPE:
        made.mode = 0o755
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def _tar(*members: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(
        fileobj=archive, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as writer:
        for member in (_member("./", tarfile.DIRTYPE), *members):
            entry, content = member if isinstance(member, tuple) else (member, b"")
            entry.size = len(content)
            writer.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _file(name: str, content: bytes = b"harm", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, **fields), content


def _link(name: str, target: str) -> tarfile.TarInfo:
    return _member(name, tarfile.SYMTYPE, linkname=target)


def _hard_link(name: str, target: str) -> tarfile.TarInfo:
    return _member(name, tarfile.LNKTYPE, linkname=target)


def _directory(name: str, **fields: object) -> tarfile.TarInfo:
    return _member(name, tarfile.DIRTYPE, **fields)


def _pax(**headers: str) -> bytes:
    """One file whose extended header says these things."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as writer:
        entry = _member("./plain", pax_headers=headers)
        writer.addfile(entry, io.BytesIO(b""))
    return archive.getvalue()


def _raw(at: int, data: bytes, *, checksum: bool = True) -> bytes:
    """An honest archive with these bytes in the header of its second member."""
    archive = bytearray(_tar(_file("./first", b"1" * 600), _file("./second", b"2")))
    header = memoryview(archive)[_BLOCK : 2 * _BLOCK]
    header[at : at + len(data)] = data
    if checksum:
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(archive)


def _many_levels() -> bytes:
    deep = "./" + "d/" * _DEPTH
    return _tar(_directory(deep), _file(deep + "bottom"))


def _climb(outside: Path) -> str:
    return "../" * 40 + str(outside).lstrip("/")


def archives(outside: Path) -> dict[str, bytes]:
    """The archives by what they try."""
    there, climb = str(outside), _climb(outside)
    victim = f"{there}/victim"
    return {
        # names that lead out
        "absolute name": _tar(_file(f"{there}/new")),
        "absolute name over a file": _tar(_file(victim)),
        "one level up": _tar(_file("../new")),
        "through a link one level up": _tar(_link("./up", ".."), _file("./up/new")),
        "dots": _tar(_file(f"{climb}/new")),
        "dots in the middle": _tar(_directory("./a"), _file(f"./a/../{climb}/new")),
        "dots at the end": _tar(_directory(f"./{climb}/.."), _file("./x")),
        "double slash": _tar(_file(f"//{there}/new")),
        "dot segments": _tar(_file(f"././/.//{climb}/new")),
        "backslashes": _tar(_file("..\\..\\new")),
        "empty name": _tar(_file("")),
        "only dots": _tar(_file("..")),
        "directory outside": _tar(_directory(f"{there}/made")),
        "mode of a directory outside": _tar(_directory(there, mode=0o777)),
        "time of the root": _tar(_directory("./", mode=0o000, mtime=1)),
        # links that lead out
        "through a link": _tar(_link("./out", there), _file("./out/new")),
        "through a relative link": _tar(_link("./out", climb), _file("./out/new")),
        "over a file through a link": _tar(_link("./out", victim), _file("./out")),
        "through a chain of links": _tar(
            _link("./a", "b"), _link("./b", "c"), _link("./c", there), _file("./a/new")
        ),
        "through a link below a folder": _tar(
            _directory("./d"), _link("./d/out", there), _file("./d/out/new")
        ),
        "through two half links": _tar(
            _link("./up", ".."), _link("./up2", "up/.."), _file(f"./up2/{climb}/new")
        ),
        "folder is a link": _tar(_link("./out", there)),
        "folder over a link": _tar(_link("./out", there), _directory("./out", mode=0o777)),
        "link over a folder": _tar(_directory("./out"), _link("./out", there), _file("./out/new")),
        "delete through a link": _tar(_link("./out", there), _directory("./out/victim")),
        "hard link to a file": _tar(_hard_link("./held", victim)),
        "write through a hard link": _tar(_hard_link("./held", victim), _file("./held")),
        "mode through a hard link": _tar(
            _hard_link("./held", victim), _file("./held", b"", mode=0o777)
        ),
        "hard link by dots": _tar(_hard_link("./held", f"{climb}/victim"), _file("./held")),
        "hard link through a link": _tar(
            _link("./out", there), _hard_link("./held", "./out/victim"), _file("./held")
        ),
        "hard link to a link": _tar(
            _link("./out", victim), _hard_link("./held", "./out"), _file("./held")
        ),
        "link to itself": _tar(_link("./loop", "loop"), _file("./loop/x")),
        "links in a ring": _tar(_link("./a", "b"), _link("./b", "a"), _file("./a/x")),
        "PATH_MAX in links": _tar(
            *[_link(f"./{'l' * 250}{number}", "d/" * 100 + "..") for number in range(16)],
            _file("/".join(f"{'l' * 250}{number}" for number in range(16)) + f"/{climb}/new"),
        ),
        "mode through a dangling link": _tar(
            _link("./out", f"{there}/new"), _file("./out", b"", mode=0o777)
        ),
        # what should not be there
        "character device": _tar(_member("./zero", tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "block device": _tar(_member("./disk", tarfile.BLKTYPE, devmajor=254, devminor=0)),
        "device outside": _tar(_member(f"{climb}/zero", tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "fifo": _tar(_member("./pipe", tarfile.FIFOTYPE)),
        "write into a fifo": _tar(_member("./pipe", tarfile.FIFOTYPE), _file("./pipe")),
        "set-id files": _tar(_file("./su", mode=0o6755), _file("./sg", mode=0o2755)),
        "set-id by a hard link": _tar(_file("./su", mode=0o6755), _hard_link("./again", "./su")),
        "sticky and open": _tar(_directory("./open", mode=0o1777), _file("./f", mode=0o7777)),
        # names and fields
        "same name twice": _tar(_file("./x", b"1"), _file("./x", b"22")),
        "file and folder of one name": _tar(_file("./x"), _directory("./x"), _file("./x/y")),
        "a file in a file": _tar(_file("./x"), _file("./x/y")),
        "line break": _tar(_file("./a\nb"), _file("./\n./c")),
        "terminal codes": _tar(_file("./\x1b[2J\x1b]0;title\x07\x1b[31m"), _file("./\r\b\x7f")),
        "not UTF-8": _tar(_file("./\udcff\udcfe\udc80")),
        "HTML": _tar(_file("./<script>alert(1)<")),
        "options": _tar(_file("./--checkpoint-action=exec=touch new"), _file("--to-command=id")),
        "300 characters": _tar(_file("./" + "n" * 300)),
        "spaces": _tar(_file("./ "), _file('./"'), _file("./a -> b"), _file("./x link to y")),
        "owner with spaces": _tar(_file("./x", uname='a "b" c', gname="-> 5")),
        "1200 levels": _many_levels(),
        "mode 000": _tar(_directory("./d", mode=0), _file("./d/f", mode=0)),
        "time 2^62": _tar(_file("./late", mtime=2**62)),
        "time before 1970": _tar(_file("./early", mtime=-(2**40))),
        "owner 2^31": _tar(_file("./x", uid=2**31, gid=2**31)),
        # headers
        "pax: absolute path": _pax(path=f"{there}/new"),
        "pax: dots": _pax(path=f"{climb}/new"),
        "pax: link": _pax(linkpath=victim),
        "pax: huge size": _pax(size=str(2**62)),
        "pax: nonsense": _pax(mtime="never", size="-1", uid="x"),
        "pax: ACL and attribute": _pax(
            **{"SCHILY.xattr.security.capability": "\x01\0\0\x02", "SCHILY.acl.access": "user::rwx"}
        ),
        "bad checksum": _raw(0, b"X", checksum=False),
        "size in octal nonsense": _raw(124, b"99999999999\0"),
        "size negative": _raw(124, b"\xff" * 12),
        "size of 8 exabytes": _raw(124, b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7),
        "unknown type": _raw(156, b"?"),
        "multi-volume": _raw(156, b"M"),
        "long name without a name": _raw(156, b"L"),
        "dump folder": _raw(156, b"D"),
        "sparse nonsense": _raw(156, b"S"),
        "volume label": _raw(156, b"V"),
        "name without an end": _raw(0, b"A" * 100),
        "NUL in the name": _raw(0, b"./a\0../../b\0"),
        "torn": _tar(_file("./x", b"1" * 5000))[:2000],
        "nothing": b"",
        "not an archive": os.urandom(4096),
        "dump folder renames": _dump_folder(b"R" + climb.encode() + b"/victim\0T./stolen\0\0"),
        "dump folder renames outward": _dump_folder(b"R./x\0T" + climb.encode() + b"/new\0\0"),
        "dump folder deletes": _tar(_link("./d", there))[: 2 * _BLOCK] + _dump_folder(b"\0"),
    }


def _dump_folder(records: bytes) -> bytes:
    """What tar writes for incremental backups: a folder with records of what is in it."""
    return _tar((_member("./d/", b"D", mode=0o755), records), _file("./x"))


# --- the routes -----------------------------------------------------------------------------


@dataclass
class Range:
    """Where one archive is let loose: a folder with a victim, and a sandbox beside it."""

    folder: Path

    def __post_init__(self) -> None:
        self.outside = self.folder / "outside"
        self.outside.mkdir(parents=True)
        (self.outside / "victim").write_bytes(b"untouched")
        (self.outside / "victim").chmod(0o640)

    def restored_by(self, route: str, archive: bytes) -> Row:
        """Restore it: what came of it, what changed outside, how long it took."""
        began, used = time.monotonic(), sum(os.times()[:4])
        with Sandbox.create(self.folder.parent / "home", "hostile") as sandbox:
            before = look(self.folder)
            staging = sandbox.tree("staging").path
            try:
                _ROUTES[route](archive, sandbox, staging)
                said = "restored"
                manifest.capture(staging, sandbox.tree("scratch").path / "found.parquet")
            except RecoveryError as error:
                said = str(error)
            special = _special(staging)
            reachable = stat.S_IMODE(sandbox.path.stat().st_mode) != 0o700
            beside = sorted({path.name for path in sandbox.path.iterdir()} - _OURS)
        return {
            "said": said[:300],
            "changed_outside": look(self.folder) != before,
            "beside_staging": beside,
            "special_inside": special,
            "reachable_by_others": reachable,
            "left": sandbox.path.exists(),
            "seconds": time.monotonic() - began,
            "processor_seconds": sum(os.times()[:4]) - used,
        }


def _special(folder: Path) -> int:
    """Device nodes and files with set-id bits: as the backup holds them, where none can reach."""
    kinds = ("-type", "b", "-o", "-type", "c", "-o", "-perm", "/6000")
    return len(subprocess.check_output(["find", folder, "(", *kinds, ")", "-printf", "x"]))


def _limit() -> float:
    return _STOP_SECONDS


def _by_audit(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As an audit of a directory of archives."""
    held = sandbox.tree("archives")
    held.write(b"a.tar", archive)
    _audit(Repository(directory=held.path), "", sandbox, staging)


def _audit(repository: Repository, password: str, sandbox: Sandbox, staging: Path) -> None:
    os.environ[_PASSWORD] = password
    reader = open_repository(repository, sandbox.tree("audit").path, _limit, {})
    assert isinstance(reader, TreeReader)
    (backup,) = reader.backups()
    reader.restore(backup, reader.contents(backup), staging, None)


def _by_tar(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As the engine tar restores its own repository, if somebody replaced the archive."""
    repository, work = sandbox.tree("repository"), sandbox.tree("work")
    packed = subprocess.run(["zstd", "-q"], input=archive, capture_output=True, check=True).stdout
    repository.write(b"x-0000.tar.zst", packed)
    engine = TarEngine(repository.path, work.path, timeout_seconds=_STOP_SECONDS)
    engine.restore(_recorded("x-0000"), staging)


def _by_borg(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As the engine borg, of a repository into which `borg import-tar` put it."""
    engine = _borg(archive, sandbox)
    (snapshot_id,) = engine.snapshot_ids()
    engine.restore(_recorded(snapshot_id), staging)


def _by_borg_audit(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As an audit of that repository."""
    engine = _borg(archive, sandbox)
    repository = Repository(borg=str(engine.repository), password=f"env:{_PASSWORD}")
    _audit(repository, engine._passphrase, sandbox, staging)


def _borg(archive: bytes, sandbox: Sandbox) -> BorgEngine:
    repository, work = sandbox.tree("repository"), sandbox.tree("work")
    engine = BorgEngine(repository.path, work.path, timeout_seconds=_STOP_SECONDS)
    engine.init()
    environment = os.environ | {
        "BORG_BASE_DIR": str(work.path / "client"),
        "BORG_PASSPHRASE": engine._passphrase,
    }
    done = subprocess.run(
        ["borg", "import-tar", f"{repository.path}::a", "-"],
        input=archive,
        env=environment,
        capture_output=True,
        check=False,
    )
    if done.returncode == 2:
        raise RecoveryError("borg does not import it")
    return engine


def _by_rsync(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As the engine rsync, of a copy that holds what tar makes of the archive."""
    repository, work = sandbox.tree("repository"), sandbox.tree("work")
    engine = RsyncEngine(repository.path, work.path, timeout_seconds=_STOP_SECONDS)
    held = repository.path / "20260101T000000.000000Z-00000000"
    held.mkdir()
    with suppress(RecoveryError):
        _by_audit(archive, sandbox, held)
    engine.restore(_recorded(held.name), staging)


def _by_restic(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As the engine restic, of a backup of what tar makes of the archive."""
    engine, snapshot = _restic(archive, sandbox)
    engine.restore(snapshot, staging)


def _by_restic_audit(archive: bytes, sandbox: Sandbox, staging: Path) -> None:
    """As an audit of that repository."""
    engine, _ = _restic(archive, sandbox)
    repository = Repository(restic=str(engine.repository), password=f"env:{_PASSWORD}")
    _audit(repository, engine._password, sandbox, staging)


def _restic(archive: bytes, sandbox: Sandbox) -> tuple[ResticEngine, Snapshot]:
    repository, work = sandbox.tree("repository"), sandbox.tree("work")
    engine = ResticEngine(repository.path, work.path, timeout_seconds=_STOP_SECONDS)
    engine.init()
    held = sandbox.tree("scratch").path / "held"
    held.mkdir()
    with suppress(RecoveryError):
        _by_audit(archive, sandbox, held)
    return engine, engine.backup(held, None)


def _recorded(snapshot_id: str) -> Snapshot:
    return Snapshot(snapshot_id, "full", None, datetime.now(UTC), "", 0)


_ROUTES: dict[str, Callable[[bytes, Sandbox, Path], None]] = {
    "audit": _by_audit,
    "tar": _by_tar,
    "borg": _by_borg,
    "rsync": _by_rsync,
    "restic": _by_restic,
    "audit of borg": _by_borg_audit,
    "audit of restic": _by_restic_audit,
}
ROUTES = tuple(_ROUTES)


def hostile(
    folder: Path, names: Collection[str] = (), routes: Sequence[str] = ROUTES
) -> Iterator[Row]:
    """These archives (or all) by these routes; `wrong` says what must not be, empty if nothing."""
    place = Range(folder / new_run_id("range"))
    for name in names or archives(place.outside):
        for route in routes:
            row = place.restored_by(route, archives(place.outside)[name])
            wrong = _wrong(row)
            if wrong:
                place = Range(folder / new_run_id("range"))
            yield {"route": route, "archive": name, "wrong": wrong, **row}


def _wrong(row: Row) -> str:
    words = {
        "changed something outside": row["changed_outside"],
        "wrote beside its folder": row["beside_staging"],
        "can be reached by others": row["reachable_by_others"],
        "left its sandbox": row["left"],
        "hung": row["processor_seconds"] > LIMIT_SECONDS or row["seconds"] > _STOP_SECONDS,
    }
    return "; ".join(what for what, happened in words.items() if happened)
