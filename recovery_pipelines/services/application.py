"""The default stack's HTTP application: `/health` writes to and reads from both its stores.

`/alive` says only that the process answers, so that a broken store does not restart it; `/metrics`
is for monitoring.
Run as `python -m recovery_pipelines.services.application --port 8080 [--postgres P] [--redis P]`.
"""

import argparse
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
import redis
from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest
from redis.backoff import NoBackoff
from redis.retry import Retry

_TABLE = "create table if not exists application_visits (id int primary key, visits bigint)"
_VISIT = (
    "insert into application_visits values (1, 1) "
    "on conflict (id) do update set visits = application_visits.visits + 1 returning visits"
)


def visit(postgres_port: int | None, redis_port: int | None) -> None:
    """Write to and read from every store; raises what they raise."""
    if postgres_port:
        address = f"host=127.0.0.1 port={postgres_port} user=postgres dbname=postgres"
        with psycopg.connect(address, autocommit=True, connect_timeout=2) as connection:
            connection.execute(_TABLE)
            connection.execute(_VISIT).fetchone()
    if redis_port:
        with redis.Redis(
            port=redis_port,
            socket_timeout=2,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            visits = client.incr("application:visits")
            if int(client.get("application:visits") or 0) < visits:
                raise redis.RedisError("the visit that was written cannot be read")


def serve(port: int, postgres_port: int | None, redis_port: int | None) -> None:
    """Answer until killed."""
    registry = CollectorRegistry()
    took = Histogram("http_request_duration_seconds", "Of each request", registry=registry)
    done = Counter("http_requests", "By status", ["status"], registry=registry)
    sent = Summary("http_response_size_bytes", "Of all bodies", registry=registry)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                return self._answer(200, generate_latest(registry))
            began = time.monotonic()
            status, text = 200, "ok"
            if self.path == "/health":
                try:
                    visit(postgres_port, redis_port)
                except (psycopg.Error, redis.RedisError, OSError) as error:
                    status, text = 503, f"{type(error).__name__}: {error}"
            elif self.path != "/alive":
                status, text = 404, "known here: /health, /alive, /metrics"
            self._answer(status, text.encode())
            took.observe(time.monotonic() - began)
            done.labels(status).inc()
            sent.observe(len(text.encode()))

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--postgres", type=int)
    parser.add_argument("--redis", type=int)
    options = parser.parse_args()
    serve(options.port, options.postgres, options.redis)
