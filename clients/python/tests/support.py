"""What the tests share: the package's place, and a stand-in for the service.

The stand-in is for what the real service cannot be brought to do, and for tests of trainers, which want rewards that
depend on tokens in a known way. The real service's own answers are tested with the real service.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "clients" / "python"))
# Models and tokenizers are made here; nothing is to be fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

NAMES = ["semantic", "simulated"]
DEVIATIONS = {"semantic": 0.2, "simulated": 0.05}
START = {"semantic": 0.3, "simulated": 0.1}


def semantic(tokens: list[int]) -> float:
    """Share of even tokens."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def simulated(tokens: list[int]) -> float:
    """Small numbers, and another ranking than the other reward's."""
    return 0.3 * sum(token % 3 == 0 for token in tokens) / len(tokens)


def scored(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of a service that is well."""
    contents = [answer.get("tokens") or [ord(letter) for letter in answer["text"]] for answer in answers]
    return {
        "names": NAMES,
        "rewards": {"semantic": [semantic(of) for of in contents], "simulated": [simulated(of) for of in contents]},
        "format": [True] * len(answers),
        "items": [None] * len(answers),
        "start": {name: [mean] * len(answers) for name, mean in START.items()},
    }


class StandIn:
    """`replies` are what the next POSTs get, as (status, headers, body) or a function that returns such; then it
    scores."""

    def __init__(self, max_answers: int = 4096):
        self.description: dict[str, Any] = {
            "names": NAMES,
            "mode": "think",
            "max_answers": max_answers,
            "max_body_bytes": 32 << 20,
            "start_deviations": DEVIATIONS,
        }
        self.posts: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.replies: list[Any] = []
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has gone, as tests of timeouts have it."""


def reply(status: int, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """For `StandIn.replies`; bodies that are no bytes become JSON, Python's NaN included."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, body if isinstance(body, bytes) else json.dumps(body).encode()


def changed(**fields: Any) -> Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]:
    """A reply that is well but for some fields."""
    return lambda request: reply(200, {**scored(request["answers"]), **fields})


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*reply(200, stand_in.description))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.posts.append(request)
            stand_in.headers.append(dict(self.headers))
            answer = stand_in.replies.pop(0) if stand_in.replies else reply(200, scored(request["answers"]))
            self._send(*(answer(request) if callable(answer) else answer))

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in {**usual, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
