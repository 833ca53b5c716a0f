"""Probes: one question to a service, with an answer or an error. Timeouts are the caller's."""

import asyncio

import psycopg
import redis.asyncio

from recovery_pipelines.errors import ServiceError
from recovery_pipelines.services.service import Health

_HEARTBEAT_KEY = "recovery:heartbeat"


async def probe(health: Health, host: str, port: int) -> None:
    """Ask once; returns if the service works, else raises (any exception)."""
    if health.kind == "http":
        await _http(host, port, health.detail)
    elif health.kind == "tcp":
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
    elif health.kind == "sql":
        await _sql(host, port, health.detail)
    elif health.kind == "redis":
        async with redis.asyncio.Redis(host=host, port=port) as client:
            await client.set(_HEARTBEAT_KEY, "1")
    else:
        raise ServiceError(f"unknown kind of probe {health.kind!r}")


async def _http(host: str, port: int, path: str) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        await writer.drain()
        status_line = (await reader.readline()).decode(errors="replace").strip()
    finally:
        writer.close()
    words = status_line.split()
    if len(words) < 2 or words[1] != "200":
        raise ServiceError(f"GET {path} answered {status_line or 'nothing'!r}")


async def _sql(host: str, port: int, statement: str) -> None:
    address = f"host={host} port={port} user=postgres dbname=postgres connect_timeout=5"
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        for part in statement.split(";"):
            await connection.execute(part.encode())
