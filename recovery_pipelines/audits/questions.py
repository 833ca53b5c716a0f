"""Asks a restored PostgreSQL database, inside its machine, as `python -m`.

Reads one JSON object: `port`, `database`, `queries` (each must answer with one row whose first
value is true), `mark` (a query for the newest time, or empty). Writes one: `databases`, `contents`
(see `databases.postgres_contents`), `answers` (one row for each query, or `{"error": …}`), `mark`.
"""

import json
import sys
from typing import Any

import psycopg

from recovery_pipelines.databases.postgres_contents import describe

_DATABASES = (
    "select datname from pg_catalog.pg_database where datallowconn and datname !~ '^template'"
)


def _answer(connection: psycopg.Connection[Any], query: str) -> Any:
    try:
        with connection.transaction():
            connection.execute("set transaction read only")
            rows = connection.execute(query.encode()).fetchmany(2)
    except psycopg.Error as error:
        return {"error": " ".join(str(error).split())}
    return [*rows[0]] if len(rows) == 1 else {"error": f"{'no' if not rows else 'several'} rows"}


def main() -> None:
    asked = json.load(sys.stdin)
    address = f"host=127.0.0.1 port={asked['port']} user=postgres connect_timeout=10"
    with psycopg.connect(address, dbname=asked["database"], autocommit=True) as connection:
        said: dict[str, Any] = {
            "databases": [row[0] for row in connection.execute(_DATABASES).fetchall()],
            "answers": [_answer(connection, query) for query in asked.get("queries", ())],
            "mark": _answer(connection, asked["mark"]) if asked.get("mark") else None,
        }
        if asked.get("describe"):
            try:
                with connection.transaction():
                    said["contents"] = describe(connection)
            except psycopg.Error as error:
                said["unreadable"] = " ".join(str(error).split())
    json.dump(said, sys.stdout, default=str)


if __name__ == "__main__":
    main()
