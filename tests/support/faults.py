"""An S3 server with faults: a proxy that answers 503, is slow, or cuts requests."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyProxy:
    """Passes requests on to a server; `fault` decides what goes wrong.

    Attributes:
        fault: (method, path, number of the request) -> None, 503, seconds to wait, or "cut", which
            reads half of the body and hangs up.
        asked: requests so far.
        faults: of these, those that went wrong.
    """

    def __init__(self, host, port):
        self.fault = lambda method, path, number: None
        self.asked = self.faults = 0
        self._counting = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do(self):
                with proxy._counting:
                    proxy.asked += 1
                    number = proxy.asked
                fault = proxy.fault(self.command, self.path, number)
                with proxy._counting:
                    proxy.faults += fault is not None
                body = self.body(half=fault == "cut")
                if fault == "cut":
                    self.close_connection = True
                    return
                if isinstance(fault, float):
                    time.sleep(fault)
                if fault == 503:
                    text = b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"
                    self.answer(503, [("Content-Type", "application/xml")], text)
                    return
                onward = http.client.HTTPConnection(host, port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
                onward.request(self.command, self.path, body, headers)
                answer = onward.getresponse()
                kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP]
                self.answer(answer.status, kept, answer.read())
                onward.close()

            def body(self, *, half):
                if self.headers.get("Transfer-Encoding") != "chunked":
                    size = int(self.headers.get("Content-Length") or 0)
                    return self.rfile.read(size // 2 if half else size)
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size // 2 if half else size))
                    if half:
                        return b""
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def answer(self, status, headers, body):
                self.send_response(status)
                length = [v for k, v in headers if k.lower() == "content-length"]
                for name, value in headers:
                    if name.lower() != "content-length":
                        self.send_header(name, value)
                bare = self.command == "HEAD" and length
                self.send_header("Content-Length", length[0] if bare else str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            setattr(Handler, f"do_{method}", Handler.do)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()


HOP = {"transfer-encoding", "expect", "connection", "keep-alive", "date", "server"}
