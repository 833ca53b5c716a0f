"""A small web application on loopback: health, Prometheus metrics, and what a test makes of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Application:
    """`pages` by path; a status is a page's first part. `hang` holds every answer back."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str]] = {"/": (200, "hello"), "/health": (200, "ok")}
        self.hang = threading.Event()
        self.released = threading.Event()
        self.port = 0

    def metrics(self, requests: int, fast: int, slow: int) -> None:
        """Show counters: a tenth of `requests` failed, `fast` took 0.05 s each, `slow` 0.5 s."""
        self.pages["/metrics"] = (
            200,
            f'http_request_duration_seconds_bucket{{le="0.1"}} {fast}\n'
            f'http_request_duration_seconds_bucket{{le="1"}} {fast + slow}\n'
            f'http_request_duration_seconds_bucket{{le="+Inf"}} {fast + slow}\n'
            f"http_request_duration_seconds_count {fast + slow}\n"
            f"http_request_duration_seconds_sum {0.05 * fast + 0.5 * slow}\n"
            f'http_requests_total{{status="200"}} {requests - requests // 10}\n'
            f'http_requests_total{{status="500"}} {requests // 10}\n'
            f"http_response_size_bytes_sum {requests * 1000}\n",
        )


@contextmanager
def application() -> Iterator[Application]:
    """The application while it runs."""
    app = Application()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if app.hang.is_set():
                app.released.wait(30)
            status, text = app.pages.get(self.path, (404, "no such page"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    app.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield app
    finally:
        app.released.set()
        server.shutdown()
        server.server_close()
