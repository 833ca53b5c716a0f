"""What a PostgreSQL database holds, logically: rows by table and every object of its schemas.

Damage below the page checksums (a page that was zeroed, an old file) shows only here: rows are
missing, and every other tool is content.
"""

import json
from collections.abc import Collection
from typing import Any

import psycopg
from psycopg import sql

from recovery_pipelines.databases.base import Contents, differences

_SAMPLE_ROWS = 2000
_SETTINGS = (
    "set extra_float_digits = 3; set datestyle = 'ISO, YMD'; set timezone = 'UTC';"
    "set intervalstyle = 'postgres'; set bytea_output = 'hex'; set search_path = '';"
    "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off"
)
_OURS = (
    "{0} not in (select oid from pg_catalog.pg_namespace "
    "where nspname like 'pg\\_%' or nspname = 'information_schema') "
    "and not exists (select 1 from pg_catalog.pg_depend d where d.objid = {1} and d.deptype = 'e')"
)
_TABLES = (
    "select n.nspname, c.relname, c.relkind::text from pg_catalog.pg_class c "
    "join pg_catalog.pg_namespace n on n.oid = c.relnamespace "
    "where c.relkind in ('r', 'm') and c.relpersistence = 'p' and "
    + _OURS.format("c.relnamespace", "c.oid")
    + " order by 1, 2"
)
_OBJECTS = {
    "relation": "select c.oid::pg_catalog.regclass::text, pg_catalog.concat_ws(' ', c.relkind, "
    "c.relrowsecurity, "
    "(select pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attname, "
    "pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, "
    "a.attgenerated, pg_catalog.pg_get_expr(d.adbin, d.adrelid)), ', ' order by a.attnum) "
    "from pg_catalog.pg_attribute a left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid "
    "and d.adnum = a.attnum where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)) "
    "from pg_catalog.pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and "
    + _OURS.format("c.relnamespace", "c.oid"),
    "index": "select i.indexrelid::pg_catalog.regclass::text, pg_catalog.concat_ws(' ', "
    "pg_catalog.pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready) "
    "from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid where "
    + _OURS.format("c.relnamespace", "i.indrelid"),
    "constraint": "select pg_catalog.concat_ws(' ', k.conrelid::pg_catalog.regclass, k.conname), "
    "pg_catalog.concat_ws(' ', pg_catalog.pg_get_constraintdef(k.oid), k.convalidated) "
    "from pg_catalog.pg_constraint k where " + _OURS.format("k.connamespace", "k.oid"),
    "view": "select c.oid::pg_catalog.regclass::text, pg_catalog.pg_get_viewdef(c.oid) "
    "from pg_catalog.pg_class c where c.relkind in ('v', 'm') and "
    + _OURS.format("c.relnamespace", "c.oid"),
    "trigger": "select pg_catalog.concat_ws(' ', t.tgrelid::pg_catalog.regclass, t.tgname), "
    "pg_catalog.concat_ws(' ', pg_catalog.pg_get_triggerdef(t.oid), t.tgenabled) "
    "from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid "
    "where not t.tgisinternal and " + _OURS.format("c.relnamespace", "t.oid"),
    "function": "select p.oid::pg_catalog.regprocedure::text, pg_catalog.pg_get_functiondef(p.oid) "
    "from pg_catalog.pg_proc p where p.prokind <> 'a' and "
    + _OURS.format("p.pronamespace", "p.oid"),
    "extension": "select extname::text, extversion from pg_catalog.pg_extension",
    "privilege": "select 'relation ' || c.oid::pg_catalog.regclass, "
    "pg_catalog.concat_ws(' ', c.relowner::pg_catalog.regrole, c.relacl) "
    "from pg_catalog.pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and "
    + _OURS.format("c.relnamespace", "c.oid")
    + " union all select 'function ' || p.oid::pg_catalog.regprocedure, "
    "pg_catalog.concat_ws(' ', p.proowner::pg_catalog.regrole, p.proacl) "
    "from pg_catalog.pg_proc p where "
    + _OURS.format("p.pronamespace", "p.oid")
    + " union all select 'schema ' || n.nspname, "
    "pg_catalog.concat_ws(' ', n.nspowner::pg_catalog.regrole, n.nspacl) "
    "from pg_catalog.pg_namespace n where " + _OURS.format("n.oid", "n.oid") + " union all "
    "select 'role ' || r.rolname, pg_catalog.concat_ws(' ', r.rolsuper, r.rolinherit, "
    "r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls, "
    "r.rolconnlimit, r.rolvaliduntil, pg_catalog.md5(r.rolpassword), "
    "(select pg_catalog.string_agg(m.roleid::pg_catalog.regrole::text, ',' order by m.roleid) "
    "from pg_catalog.pg_auth_members m where m.member = r.oid)) "
    "from pg_catalog.pg_authid r where r.rolname not like 'pg\\_%'",
}
_HEAPS = (
    "select c.oid::pg_catalog.regclass || ': ' || v.msg from pg_catalog.pg_class c, "
    "lateral recovery_amcheck.verify_heapam(c.oid) v "
    "where c.relkind in ('r', 'm', 't') and c.relpersistence = 'p'"
)
_INDEXES = (
    "select recovery_amcheck.bt_index_parent_check(i.indexrelid, heapallindexed => true) "
    "from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid "
    "join pg_catalog.pg_am a on a.oid = c.relam "
    "where a.amname = 'btree' and i.indisready and i.indisvalid and c.relpersistence = 'p'"
)
_SEQUENCES = (
    "select n.nspname, c.relname, s.seqincrement, "
    "pg_catalog.concat_ws(' ', s.seqstart, s.seqmin, s.seqmax, s.seqcycle) "
    "from pg_catalog.pg_sequence s join pg_catalog.pg_class c on c.oid = s.seqrelid "
    "join pg_catalog.pg_namespace n on n.oid = c.relnamespace order by 1, 2"
)
_SAMPLE = """
create schema recovery_sample;
create table recovery_sample.team (id int primary key, name text not null unique);
create table recovery_sample.member (
    id bigserial primary key,
    team int not null references recovery_sample.team,
    name text not null check (name <> ''),
    joined timestamptz not null default '2026-01-01'
);
create index member_name on recovery_sample.member (name);
create view recovery_sample.size as
    select team, count(*) as members from recovery_sample.member group by team;
create function recovery_sample.keep_name() returns trigger language plpgsql as
    $$ begin new.name = btrim(new.name); return new; end $$;
create trigger keep_name before insert or update on recovery_sample.member
    for each row execute function recovery_sample.keep_name();
insert into recovery_sample.team select n, 'team ' || n from generate_series(1, 10) n
"""
"""One object of each kind, so that no comparison is empty."""
_MEMBERS = (
    "insert into recovery_sample.member (team, name) "
    "select n %% 10 + 1, 'member ' || md5(n || ' of ' || %(seed)s) "
    "from generate_series(1, %(rows)s) n"
)
_CHANGES = (
    "with few as (select id, row_number() over (order by md5(id || ' ' || %(seed)s)) as number "
    "from recovery_sample.member), gone as (delete from recovery_sample.member "
    "where id in (select id from few where number = 1)) "
    "update recovery_sample.member set name = 'renamed ' || md5(id || ' by ' || %(seed)s) "
    "where id in (select id from few where number between 2 and 6)"
)
_ONE_ROW = "where id = (select max(id) from recovery_sample.member)"

DAMAGES = {
    "row_changed": (
        "checksums_match",
        f"update recovery_sample.member set name = 'other' {_ONE_ROW}",
    ),
    "row_deleted": ("checksums_match", f"delete from recovery_sample.member {_ONE_ROW}"),
    "sequence_set_back": (
        "checksums_match",
        "alter sequence recovery_sample.member_id_seq restart with 5",
    ),
    "index_dropped": ("directory_structure_intact", "drop index recovery_sample.member_name"),
    "constraint_dropped": (
        "directory_structure_intact",
        "alter table recovery_sample.member drop constraint member_name_check",
    ),
    "view_changed": (
        "directory_structure_intact",
        "create or replace view recovery_sample.size as "
        "select team, 0::bigint as members from recovery_sample.member",
    ),
    "trigger_disabled": (
        "directory_structure_intact",
        "alter table recovery_sample.member disable trigger keep_name",
    ),
    "function_dropped": (
        "directory_structure_intact",
        "drop function recovery_sample.keep_name cascade",
    ),
    "privilege_granted": (
        "permissions_correct",
        "grant all on recovery_sample.member to public",
    ),
    "table_emptied": ("checksums_match", "delete from recovery_sample.member"),
    "table_dropped": ("all_files_recovered", "drop table recovery_sample.team cascade"),
}
"""By kind: the criterion that must fail, and the statement that does it to a sample."""


def make_sample(connection: psycopg.Connection[Any], rows: int, seed: int) -> None:
    """Tables with seeded rows, and one object of each other kind."""
    connection.execute(_SAMPLE)
    connection.execute(_MEMBERS, {"rows": rows, "seed": str(seed)})


def change_sample(connection: psycopg.Connection[Any], seed: int) -> None:
    """20 new rows, 5 others changed and 1 deleted, in one transaction."""
    with connection.transaction():
        connection.execute(_CHANGES, {"seed": str(seed)})
        connection.execute(_MEMBERS, {"rows": 20, "seed": str(seed)})


def describe(connection: psycopg.Connection[Any], without: Collection[str] = ()) -> Contents:
    """The contents as one transaction sees them; `without` names kinds of objects."""
    connection.execute(_SETTINGS)
    found: Contents = {}
    for kind, query in _OBJECTS.items():
        if kind not in without:
            found |= {f"{kind} {name}": what for name, what in connection.execute(query.encode())}
    for schema, name, _ in connection.execute(_TABLES.encode()).fetchall():
        rows = connection.execute(
            sql.SQL(
                "select count(*), "
                "coalesce(sum(('x' || left(h, 16))::bit(64)::bigint::numeric), 0), "
                "coalesce(sum(('x' || right(h, 16))::bit(64)::bigint::numeric), 0) "
                "from (select pg_catalog.md5(_recovery_row::text) as h "
                "from only {} as _recovery_row) as hashes"
            ).format(sql.Identifier(schema, name))
        ).fetchone()
        assert rows is not None
        found[f"rows {schema}.{name}"] = f"{rows[0]} rows, {rows[1]} {rows[2]}"
    for schema, name, step, what in connection.execute(_SEQUENCES).fetchall():
        position = connection.execute(
            sql.SQL("select last_value, is_called, log_cnt from {}").format(
                sql.Identifier(schema, name)
            )
        ).fetchone()
        assert position is not None
        last, called, ahead = position
        found[f"sequence {schema}.{name}"] = json.dumps([what, step, last, called, ahead])
    return found


def positions(connection: psycopg.Connection[Any]) -> dict[str, tuple[int, bool]]:
    """Where each sequence is, by its name: its last value, and whether that was given out."""
    found = {}
    for schema, name, _, _ in connection.execute(_SEQUENCES).fetchall():
        identifier = sql.Identifier(schema, name)
        row = connection.execute(
            sql.SQL("select last_value, is_called from {}").format(identifier)
        ).fetchone()
        assert row is not None
        found[identifier.as_string(connection)] = (row[0], row[1])
    return found


def mark(connection: psycopg.Connection[Any], name: str) -> dict[str, Any]:
    """Make the restore point `name`, at which the database holds exactly what is described.

    Nothing can be written to any table from the description to the restore point. Returns
    `contents`, `lsn` and `segment`, the segment of WAL that holds the point.
    """
    with connection.transaction():
        tables = connection.execute(_TABLES.encode()).fetchall()
        names = sql.SQL(", ").join(sql.Identifier(*row[:2]) for row in tables if row[2] == "r")
        connection.execute(sql.SQL("lock table {} in share mode").format(names))
        contents = describe(connection)
        lsn, segment = make_restore_point(connection, name)
    connection.execute("select pg_catalog.pg_switch_wal()")
    return {"contents": contents, "lsn": lsn, "segment": segment}


def make_restore_point(connection: psycopg.Connection[Any], name: str) -> tuple[str, str]:
    """Returns its LSN, and the name of the segment of WAL that holds it."""
    row = connection.execute(
        "select lsn::text, pg_catalog.pg_walfile_name(lsn) "
        "from pg_catalog.pg_create_restore_point(%s) as lsn",
        (name,),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def canaries(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    """What a comparison says of each of `DAMAGES`; each is undone."""
    told = {}
    with connection.transaction():
        before = describe(connection)
    for kind, (_, damage) in DAMAGES.items():
        with connection.transaction(force_rollback=True):
            connection.execute(damage.encode())
            told[kind] = [
                f"{name}: {what}"
                for name, what in differences(before, describe(connection)).items()
            ]
    return told


def amcheck(connection: psycopg.Connection[Any]) -> str:
    """What amcheck finds in tables and B-tree indexes, those of the system too; empty: nothing."""
    with connection.transaction(force_rollback=True):
        connection.execute("create schema recovery_amcheck")
        connection.execute("create extension amcheck schema recovery_amcheck")
        try:
            found = [row[0] for row in connection.execute(_HEAPS.encode()).fetchall()]
            connection.execute(_INDEXES.encode())
        except psycopg.Error as error:
            found = [str(error)]
    return "; ".join(" ".join(each.split()) for each in found[:3])


def write_test(connection: psycopg.Connection[Any]) -> str:
    """Write, commit, read back and remove; returns what was read."""
    connection.execute("create table public.recovery_write_test (x text)")
    connection.execute("insert into public.recovery_write_test values ('written')")
    row = connection.execute("select x from public.recovery_write_test").fetchone()
    connection.execute("drop table public.recovery_write_test")
    return str(row and row[0])


def carry_out(do: str, port: int, name: str = "") -> Any:
    """Do one of the above, or `sample`, with the server on that port of this machine."""
    address = f"host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=5"
    with psycopg.connect(address, autocommit=True) as connection:
        if do == "sample":
            make_sample(connection, _SAMPLE_ROWS, seed=1)
            return None
        if do == "mark":
            return mark(connection, name)
        if do == "describe":
            with connection.transaction():
                return describe(connection)
        return {"canaries": canaries, "write": write_test}[do](connection)
