"""A stand-in on loopback for a chat model behind OpenAI's API, and for its failures."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer(ThreadingHTTPServer):
    """Answers AutoInterp's prompts by words: a feature is where its commonest word is.

    Attributes:
        asked: The requests so far that reached it, as the client sent them.
        keys: The keys that came with them.
        failures: How the next requests fail: a status, or the name of a failure.
        answers: What it says to prompts with these strings in them, instead.
        script: What it says to the next prompts, and why it ended.
        retry_after: Whether it says how long to wait after an error.
        headers: What it says with everything.
        error: What it says with an error.
        reasons: Whether its model wants max_completion_tokens.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.failures: list[int | str | None] = []
        self.answers: dict[str, str] = {}
        self.script: list[tuple[str | None, str]] = []
        self.retry_after = True
        self.headers: dict[str, str] = {}
        self.error = "no luck"
        self.reasons = False
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that did not wait."""

    def answer(self, prompt: str) -> str:
        for part, answer in self.answers.items():
            if part in prompt:
                return answer
        if "activating documents" in prompt:
            words = Counter(re.findall(r"<<(.+?)>>", prompt))
            return f"This neuron activates on {words.most_common(1)[0][0].strip()}."
        word = re.findall(r"this neuron fires on (.*)\.\n", prompt)[0]
        texts = re.findall(r"^(\d+)\. (.*)$", prompt, re.MULTILINE)
        return ", ".join(n for n, text in texts if word in text) or "None"


@contextmanager
def judge_server() -> Generator[JudgeServer]:
    """Serve within a ``with`` block."""
    server = JudgeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


class JudgeHandler(BaseHTTPRequestHandler):
    """Answers for a JudgeServer."""

    server: JudgeServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append({"path": self.path, **body})
            self.server.keys.add(self.headers["Authorization"])
            failure = self.server.failures.pop(0) if self.server.failures else None
            script = self.server.script.pop(0) if self.server.script else None
        said = script or (self.server.answer(body["messages"][-1]["content"]), "stop")
        message = {"content": said[0]}
        choice = {"message": message, "finish_reason": said[1]}
        whole = json.dumps({"choices": [choice]}).encode()
        if self.server.reasons and "max_tokens" in body:
            self._send(
                400,
                b'{"error": {"message": "Unsupported parameter: \'max_tokens\'. Use '
                b"'max_completion_tokens' instead.\"}}",
            )
        elif isinstance(failure, int):
            error = json.dumps({"error": {"message": self.server.error}})
            self._send(failure, error.encode())
        elif failure == "reset":
            # Closed with this option, a socket resets its connection.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
        else:
            broken = {
                "cut off": whole[: len(whole) // 2],
                "half JSON": whole[:-3],
                "no choices": b'{"choices": []}',
                "null": whole.replace(
                    json.dumps(message).encode(), b'{"content": null}'
                ),
                "page": b"<html>Bad gateway</html>",
                "nothing": b"",
            }
            content = whole if failure is None else broken[str(failure)]
            announced = len(whole) if failure == "cut off" else len(content)
            self._send(200, content, announced)
            self.close_connection = failure == "cut off"

    def _send(self, status: int, body: bytes, announced: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(announced or len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if status == 429 and self.server.retry_after:
            self.send_header("Retry-After", "0.05")
        elif status >= 500 and self.server.retry_after:
            self.send_header("Retry-After-Ms", "5")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
