"""An OpenAI endpoint whose habits a test chooses, with times that are known: a word each `pause_s`, one after another.

Our own endpoint has usage, ignore_eos and no pauses of a known length; others do not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Habits:
    """`refuses`: fields that end in 400. `one_at_a_time`: a request waits until the one before is done."""

    refuses: tuple[str, ...] = ()
    usage: bool = True
    pause_s: float = 0.01
    one_at_a_time: bool = False
    breaks_off_at: int = 0
    status: int = 200
    hangs: tuple[str, ...] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def server(habits: Habits) -> Iterator[str]:
    """Its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._whole(200, {"data": [{"id": "some/model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            habits.bodies.append(body | {"authorization": self.headers.get("authorization")})
            refused = [name for name in habits.refuses if name in body]
            if refused or habits.status != 200:
                status = 400 if refused else habits.status
                self._whole(status, {"error": {"message": f"unknown field {refused}" if refused else "not now"}})
                return
            if habits.one_at_a_time:
                with habits.lock:
                    self._stream(body)
            else:
                self._stream(body)

        def _whole(self, status: int, document: Any) -> None:
            payload = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def _stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            chat = "messages" in body
            prompt = body["messages"][0]["content"] if chat else body["prompt"]
            count = body.get("max_tokens") or body["max_completion_tokens"]
            if any(word in prompt for word in habits.hangs):
                time.sleep(3)
                return
            if chat:
                self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            for number in range(count):
                time.sleep(habits.pause_s)
                if number + 1 == habits.breaks_off_at:
                    return
                last = "length" if number + 1 == count else None
                part = {"delta": {"content": " word"}} if chat else {"text": " word"}
                self._event({"choices": [{**part, "finish_reason": last}]})
            if habits.usage and body.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": count}
                self._event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, document: Any) -> None:
            kind = "chat.completion.chunk" if "chat" in self.path else "text_completion"
            self.wfile.write(b"data: " + json.dumps({"object": kind, **document}).encode() + b"\n\n")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """A client that gave up is what some tests are about."""

    running = Server(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()
