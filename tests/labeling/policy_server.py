"""A policy server to test against: it answers by a script, over HTTP, as `transformers serve` and vLLM do.

`python -m tests.labeling.policy_server PORT MODEL` is one as a process of its own, in the place of an engine.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict], Iterable[Any]]


class Cut(Exception):
    """Break the connection off here."""


class Handler(BaseHTTPRequestHandler):
    """One request: the script's texts are pieces, dicts are events as they stand, an int is a status, Cut breaks off."""

    def do_GET(self) -> None:
        """/health."""
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        policy: StubPolicy = self.server.policy
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with policy.lock:
            policy.asked.append((self.path, body))
            policy.active += 1
            policy.most_active = max(policy.most_active, policy.active)
        try:
            self._answer(policy, body)
        except (BrokenPipeError, ConnectionResetError):
            policy.cancelled.release()
        except Cut:
            pass
        finally:
            with policy.lock:
                policy.active -= 1

    def _answer(self, policy: "StubPolicy", body: dict) -> None:
        has_begun = False
        for step in policy.script(body):
            if isinstance(step, int):
                self.send_response(step)
                self.end_headers()
                self.wfile.write(json.dumps({"detail": "no /models/secret-place here"}).encode())
                return
            if not has_begun:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                has_begun = True
            if isinstance(step, bytes):
                self.wfile.write(step)
            else:
                self.wfile.write(f"data: {json.dumps(self._event(policy, step))}\n\n".encode())
            self.wfile.flush()

    def _event(self, policy: "StubPolicy", step: Any) -> dict:
        if isinstance(step, str):
            step = {"text": step}
        if "error" in step:
            return step
        text, usage = step.get("text"), step.get("usage")
        content = {"delta": {"content": text} if text else {"role": "assistant"}}
        choice = {"index": 0, "finish_reason": step.get("finish"), **content}
        if self.path == "/v1/completions":
            choice = {"index": 0, "finish_reason": step.get("finish"), "text": text or ""}
        more = {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}} if usage else {}
        return {"id": "x", "model": step.get("model", policy.model), "choices": [choice], **more}

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class StubPolicy:
    """The server and what it saw. `script(body)` yields the steps of an answer; `model` is what it calls itself."""

    def __init__(self, model: str, port: int = 0) -> None:
        self.model = model
        self.script: Script = lambda body: ["Hel", "lo.", END]
        self.asked: list[tuple[str, dict]] = []
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self.cancelled = threading.Semaphore(0)
        self._port = port
        self.start()

    def start(self) -> None:
        """Listen, on the port that it had before."""
        self._server = Server(("127.0.0.1", self._port), Handler)
        self._server.policy = self
        self._port = self._server.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def last(self) -> dict:
        """The body that came last."""
        return self.asked[-1][1]


END = {"finish": "stop", "usage": (7, 2)}


def endless(body: dict) -> Iterable[Any]:
    """Goes on until the client hangs up."""
    while True:
        yield "and "
        time.sleep(0.01)


def main(port: str, model: str) -> None:
    """Answer with a few words, slowly enough that a change of policies finds answers under way; broken if the model is named so."""
    policy = StubPolicy(model, int(port))

    def answer(body: dict) -> Iterable[Any]:
        if "broken" in model:
            yield 500
        for words in ("I am ", model.rsplit("/")[-1]):
            yield words
            time.sleep(0.015)
        yield END

    policy.script = answer
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
