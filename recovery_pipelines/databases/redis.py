"""A Redis server of our own on the files of one folder, reached through a socket in it.

Redis starts empty, without a word, where it does not find the files that its settings name. So the
files decide the settings, and a folder without any is refused.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import redis
import xxhash
from redis.backoff import NoBackoff
from redis.retry import Retry

from recovery_pipelines.databases.base import Contents, DatabaseFault
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import find_tool

DUMP, LOG_FOLDER, USERS = "dump.rdb", "appendonlydir", "users.acl"
_SOCKET = "redis.sock"
_START_SECONDS = 60.0
_ANSWER_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_WRITE_TEST = b"recovery:write-test"
_SETTINGS = {
    "port": "0",
    "unixsocket": _SOCKET,
    "unixsocketperm": "700",
    "save": "",
    "appendfsync": "always",
    "aof-load-truncated": "no",
    "auto-aof-rewrite-percentage": "0",
    "aclfile": USERS,
    "dir": ".",
}


@contextmanager
def connect(folder: Path) -> Iterator[Any]:
    """A `redis.Redis` (half of it is untyped) of the server whose socket is in `folder`, whatever
    the length of its path."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    client = redis.Redis(
        unix_socket_path=f"/proc/self/fd/{descriptor}/{_SOCKET}",
        socket_timeout=_ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        yield client
    except redis.RedisError as error:
        raise DatabaseError(f"Redis in {folder}: {error}") from error
    finally:
        client.close()
        os.close(descriptor)


class RedisDatabase:
    """A running Redis server."""

    kind: ClassVar[str] = "redis"
    faults: ClassVar[Mapping[str, DatabaseFault]]

    def __init__(self, folder: Path, client: Any) -> None:
        self.folder = folder
        self.client = client

    def fill(self, rows: int, seed: int) -> None:
        rng = Random(seed)
        for name in ("reader", "writer"):
            self.client.execute_command("ACL", "SETUSER", name, "on", f">{name}", "~*", "+@read")
        self.client.execute_command("ACL", "SAVE")
        pipe = self.client.pipeline(transaction=False)
        for number in range(rows):
            pipe.set(f"session:{number}", rng.randbytes(60))
        for number in range(max(rows // 100, 5)):
            pipe.rpush(f"queue:{number}", *(str(rng.random()) for _ in range(8)))
            pipe.sadd(f"tags:{number}", *(str(rng.random()) for _ in range(8)))
            pipe.hset(f"user:{number}", mapping={str(n): rng.random() for n in range(8)})
            pipe.zadd(f"rank:{number}", {str(n): rng.random() for n in range(8)})
            pipe.xadd(f"events:{number}", {"n": rng.random()}, id=f"{number + 1}-1")
            pipe.set(f"short:{number}", rng.random(), pxat=4_000_000_000_000 + number)
        pipe.execute()

    def load(self, file: Path) -> None:
        """A `dump.rdb`: read by a server of its own, whose log of writes is then ours."""
        raise DatabaseError("an open Redis takes over no file: open it on the folder that has it")

    def change(self, seed: int) -> None:
        """New keys, and a few changed and removed."""
        rng = Random(seed)
        pipe = self.client.pipeline(transaction=False)
        for number in range(20):
            pipe.set(f"recovery:{seed}:{number}", rng.randbytes(60))
        for key in self._some(5, rng, "string"):
            pipe.set(key, rng.randbytes(60), keepttl=True)
        for key in self._some(1, rng, "string"):
            pipe.delete(key)
        pipe.execute()

    def describe(self) -> Contents:
        found: Contents = {}
        for number in range(int(self.client.config_get("databases")["databases"])):
            self.client.execute_command("SELECT", number)
            totals: dict[str, list[int]] = {}
            for key in self.client.scan_iter(count=1000):
                kind, digest = self._value(key)
                counted = totals.setdefault(kind, [0, 0])
                counted[0] += 1
                counted[1] += digest
            for kind, (count, total) in totals.items():
                found[f"layout db{number} {kind}"] = f"{count} keys"
                found[f"rows db{number} {kind}"] = f"{total % (1 << 128):032x}"
        self.client.execute_command("SELECT", 0)
        for line in self.client.execute_command("ACL", "LIST"):
            words = bytes(line)
            found[f"privilege {words.split()[1].decode()}"] = xxhash.xxh3_128_hexdigest(words)
        return found

    def problems(self) -> str:
        """Redis has read all of its files at its start, or would not have started."""
        return ""

    def written(self) -> bool:
        try:
            self.client.set(_WRITE_TEST, "written")
            seen = self.client.get(_WRITE_TEST)
            self.client.delete(_WRITE_TEST)
        except redis.RedisError:
            return False
        return bool(seen == b"written")

    def _some(self, count: int, rng: Random, kind: str | None = None) -> list[bytes]:
        """Keys in a seeded choice."""
        keys = sorted(self.client.scan_iter(count=1000, _type=kind))
        return rng.sample(keys, min(count, len(keys)))

    def _value(self, key: bytes) -> tuple[str, int]:
        """The type of a key, and a digest of its name, value and expiry."""
        client: Any = self.client
        kind = client.type(key).decode()
        if kind == "string":
            value: Any = client.get(key)
        elif kind == "list":
            value = client.lrange(key, 0, -1)
        elif kind == "set":
            value = sorted(client.smembers(key))
        elif kind == "hash":
            value = sorted(client.hgetall(key).items())
        elif kind == "zset":
            value = client.zrange(key, 0, -1, withscores=True)
        elif kind == "stream":
            value = [client.xrange(key), client.xinfo_groups(key)]
        else:  # of a module: as it is written into a dump
            value = client.dump(key)
        expires = client.execute_command("PEXPIRETIME", key)
        return kind, xxhash.xxh3_128_intdigest(ascii((key, value, expires)).encode())


@contextmanager
def open_redis(folder: Path, sandbox: Sandbox, *, new: bool = False) -> Iterator[RedisDatabase]:
    """A server on the files in `folder`, or on an empty one if it is to be `new`.

    It keeps a log of writes (AOF) there. Raises DatabaseError if it does not start, or if there is
    nothing that it would start from.
    """
    has_log, has_dump = (folder / LOG_FOLDER).is_dir(), (folder / DUMP).is_file()
    if not (new or has_log or has_dump):
        raise DatabaseError(f"{folder} holds neither {LOG_FOLDER} nor {DUMP}: Redis would be empty")
    (folder / USERS).touch(0o600)
    appendonly = "yes" if new or has_log else "no"  # with yes a dump alone would not be read
    settings = _SETTINGS | {"appendonly": appendonly}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    log = folder.with_name(f"{folder.name}-redis.log")
    with log.open("wb") as output:
        server = subprocess.Popen(
            [find_tool("redis-server"), *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **sandbox.environment},
        )
    try:
        sandbox.lease.add_process(server.pid)
        with connect(folder) as client:
            _await(server, client, log)
            if appendonly == "no":
                client.config_set("appendonly", "yes")
                await_idle(client)
            yield RedisDatabase(folder, client)
    finally:
        server.kill()
        server.wait()
        (folder / _SOCKET).unlink(missing_ok=True)


def await_idle(client: Any) -> None:
    """Wait until no child of the server writes a file, and see that the last one succeeded."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        said = client.info("persistence")
        busy = (
            said["rdb_bgsave_in_progress"],
            said["aof_rewrite_in_progress"],
            said["aof_rewrite_scheduled"],
        )
        if not any(busy):
            break
        if time.monotonic() > deadline:
            raise DatabaseError(f"Redis still writes its files after {_ANSWER_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)
    for name in ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status"):
        if said[name] != "ok":
            raise DatabaseError(f"Redis reports {name} {said[name]}")


def take_over(file: Path, folder: Path) -> None:
    """Put a dump of the team's own where a server will read it."""
    shutil.copyfile(file, folder / DUMP)


def _await(server: "subprocess.Popen[bytes]", client: Any, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if client.ping():
                return
        except (redis.ConnectionError, redis.BusyLoadingError):
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise DatabaseError(f"Redis does not start: {' / '.join(said)}")
        time.sleep(_LOOK_SECONDS)


def _change_value(database: RedisDatabase, rng: Random) -> str:
    for key in database._some(1, rng, "string"):
        database.client.set(key, f"changed {rng.random()}", keepttl=True)
        return f"value of {key!r} changed"
    return ""


def _delete_key(database: RedisDatabase, rng: Random) -> str:
    for key in database._some(1, rng):
        database.client.delete(key)
        return f"key {key!r} deleted"
    return ""


def _lose_expiry(database: RedisDatabase, rng: Random) -> str:
    keys = [key for key in database._some(1000, rng) if database.client.persist(key)]
    return f"expiry of {len(keys)} keys lost" if keys else ""


def _change_type(database: RedisDatabase, rng: Random) -> str:
    for key in database._some(1, rng, "string"):
        database.client.delete(key)
        database.client.rpush(key, "now a list")
        return f"{key!r} became a list"
    return ""


def _flush(database: RedisDatabase, rng: Random) -> str:
    count = database.client.dbsize()
    database.client.flushdb()
    return f"all {count} keys deleted" if count else ""


def _add_user(database: RedisDatabase, rng: Random) -> str:
    database.client.execute_command("ACL", "SETUSER", "stranger", "on", "nopass", "~*", "+@all")
    database.client.execute_command("ACL", "SAVE")
    return "a user who may do everything was added"


RedisDatabase.faults = {
    "value_changed": DatabaseFault("checksums_match", _change_value),
    "key_deleted": DatabaseFault("checksums_match", _delete_key),
    "expiry_lost": DatabaseFault("checksums_match", _lose_expiry),
    "type_changed": DatabaseFault("directory_structure_intact", _change_type),
    "user_added": DatabaseFault("permissions_correct", _add_user),
    "flushed": DatabaseFault("all_files_recovered", _flush),
}
