"""A proxy in front of an HTTP service that does it harm on demand.

`mode` says what happens to requests that come now: `pass`; a status, as `"503"`, answered instead of asking; `lost`: the
service does it, and then the connection breaks without an answer; `error_after`: the service does it, and the answer is 500;
`slow`: it takes a second longer; `unconditional`: the service never hears of `If-None-Match`.
"""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_S = 1.0
ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>Please reduce your request rate.</Message>'
    "</Error>"
)
CODES = {"500": "InternalError", "503": "SlowDown"}
# Of one connection, not of the message.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultProxy:
    """Forwards to `address`, unless it is told otherwise."""

    def __init__(self, address):
        self.mode = "pass"
        self.harmed = 0
        host = address.removeprefix("http://")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """One connection."""

            protocol_version = "HTTP/1.1"

            def handle_any(self):
                mode = outer.mode
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                outer.harmed += mode != "pass"
                if mode in CODES:
                    return self.answer(int(mode), [], ERROR.format(code=CODES[mode]).encode())
                if mode == "slow":
                    time.sleep(SLOW_S)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
                if mode == "unconditional":
                    headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
                service = http.client.HTTPConnection(host, timeout=60)
                try:
                    service.request(self.command, self.path, body, headers)
                    answer = service.getresponse()
                    answered = answer.status, answer.getheaders(), answer.read()
                finally:
                    service.close()
                if mode == "lost":
                    self.close_connection = True
                    return None
                if mode == "error_after":
                    return self.answer(500, [], ERROR.format(code="InternalError").encode())
                return self.answer(*answered)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def answer(self, status, headers, body):
                """Sends an answer."""
                self.send_response_only(status)
                length = str(len(body))
                for name, value in headers:
                    # The length that HEAD tells is the object's.
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def log_message(self, *_):
                """Says nothing."""

        class Proxy(ThreadingHTTPServer):
            """Many connections at a time."""

            daemon_threads = True
            request_queue_size = 128

        self.server = Proxy(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        """Stops."""
        self.server.shutdown()
        self.server.server_close()
