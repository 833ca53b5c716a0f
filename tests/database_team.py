"""A team with a PostgreSQL cluster, whose backups the plain tools make."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from recovery_pipelines.tools import existing_user, postgres_tool

SECRET = "the-secret-of-the-team"
_PORT = "5444"


class Cluster:
    """Two backups by pgBackRest (encrypted), a dump in each format, then the server is stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.repository = folder / "data", folder / "repository"
        folder.chmod(0o755)
        self._user = existing_user("postgres", "nobody") if os.geteuid() == 0 else ""
        if self._user:
            shutil.chown(folder, self._user)
        (folder / "pgbackrest.conf").write_text(
            f"[global]\nrepo1-path={self.repository}\nlock-path={folder}/lock\n"
            f"spool-path={folder}/spool\nlog-level-file=off\nlog-level-console=off\nstart-fast=y\n"
            f"repo1-retention-full=9\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={SECRET}\n"
            f"[main]\npg1-path={self.data}\npg1-socket-path={folder}\npg1-port={_PORT}\n"
        )

    def run(self, *argv: object) -> None:
        who = f"setpriv --reuid={self._user} --regid={self._user} --clear-groups".split()
        words = [str(word) for word in argv]
        subprocess.run(
            [*(who if self._user else []), *words],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )

    def sql(self, *statements: str) -> None:
        words = [word for statement in statements for word in ("-c", statement)]
        self.run("psql", "-qX", "-h", self.folder, "-p", _PORT, "-d", "orders", *words)

    def pgbackrest(self, *words: str) -> None:
        config = f"--config={self.folder}/pgbackrest.conf"
        self.run("pgbackrest", config, "--stanza=main", *words)

    def make(self) -> None:
        initdb = ("-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        self.run(postgres_tool("initdb"), "-D", self.data, *initdb)
        push = f"pgbackrest --config={self.folder}/pgbackrest.conf --stanza=main archive-push"
        options = (
            f"-c listen_addresses= -c unix_socket_directories={self.folder} -c port={_PORT} "
            f"-c fsync=off -c archive_mode=on -c archive_command='{push} %p'"
        )
        control = (postgres_tool("pg_ctl"), "-D", self.data, "-w", "-l", self.folder / "log")
        self.run(*control, "-o", options, "start")
        try:
            self.run("createdb", "-h", self.folder, "-p", _PORT, "orders")
            self.sql(
                'create role "the app"',
                "create table orders (id serial primary key, item text)",
                "insert into orders (item) select 'item ' || n from generate_series(1, 500) n",
                "create table marks (at timestamptz)",
                "insert into marks values (now())",
                'alter table orders owner to "the app"',
                'grant select on marks to "the app"',
            )
            self.pgbackrest("stanza-create")
            self.pgbackrest("backup", "--type=full")
            self.sql("insert into orders (item) values ('after the full backup')")
            self.pgbackrest("backup", "--type=incr")
            self._dump()
        finally:
            self.run(*control, "-m", "immediate", "stop")

    def _dump(self) -> None:
        self.run("mkdir", "dumps")
        names = {"custom": "a.dump", "plain": "b.sql", "directory": "c", "tar": "d.tar"}
        dump = ("pg_dump", "-h", self.folder, "-p", _PORT)
        for form, name in names.items():
            self.run(*dump, f"--format={form}", "-f", self.folder / "dumps" / name, "orders")
        self.run("gzip", "--keep", "dumps/b.sql")


@functools.cache
def cluster() -> Cluster:
    """One for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="recovery-team-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Cluster(folder)
    made.make()
    return made
