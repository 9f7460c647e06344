"""The client against a real HTTP server that is late, down, stumbling, or saying no."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.contract.conftest import write_example
from training.client import ClientError, HeedClient, HttpClient
from training.contract import ContractError, hash_file, read_export, read_model_manifest, write_model_manifest


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"")

    def do_HEAD(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes):
        self.server.requests.append((self.command, self.path, body, dict(self.headers)))
        status, answer, *headers = self.server.respond(self.command, self.path, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def start(respond, port=0):
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.block_on_close = False
    server.respond, server.requests = respond, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture
def serve():
    servers = []

    def make(respond, port=0):
        servers.append(start(respond, port))
        return servers[-1]

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_it_waits_for_a_server_that_is_down(serve, capsys):
    port = free_port()
    timer = threading.Timer(0.8, lambda: serve(lambda *_: (200, {"ok": True}), port))
    timer.start()
    began = time.monotonic()
    assert HttpClient(f"http://127.0.0.1:{port}", patience_seconds=20).get("/x") == {"ok": True}
    assert time.monotonic() - began > 0.5
    assert capsys.readouterr().err.count("\n") == 1
    timer.join()


def test_it_gives_up_with_one_line_that_names_the_address():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClientError, match=rf"GET {url}/x: no answer .* gave up after 0 s"):
        HttpClient(url, patience_seconds=0.3).get("/x")


def test_a_stumbling_server_is_asked_again_and_a_no_is_final(serve):
    answers = iter([(503, {}), (500, {}), (200, {"n": 1})])
    server = serve(lambda *_: next(answers))
    assert HttpClient(server.url).post("/x", {"a": 1}) == {"n": 1}
    assert [request[2] for request in server.requests] == [b'{"a":1}'] * 3

    no = serve(lambda *_: (422, {"detail": "2 errors", "errors": [{"place": "row 1", "message": "empty"}]}))
    with pytest.raises(ClientError, match=r"POST .*/x: 422 2 errors \(row 1: empty\)"):
        HttpClient(no.url).post("/x", {})
    assert len(no.requests) == 1


def test_the_token_is_sent_and_the_environment_is_checked(serve, monkeypatch, tmp_path):
    server = serve(lambda *_: (200, {"model": None}))
    monkeypatch.delenv("HEED_TOKEN", raising=False)
    monkeypatch.delenv("HEED_TOKEN_FILE", raising=False)
    monkeypatch.delenv("HEED_URL", raising=False)
    with pytest.raises(ClientError, match="HEED_URL is not set"):
        HeedClient.from_environment()
    monkeypatch.setenv("HEED_URL", server.url)
    with pytest.raises(ClientError, match="HEED_TOKEN is not set"):
        HeedClient.from_environment()
    (tmp_path / "token").write_text("heed_secret\n")
    monkeypatch.setenv("HEED_TOKEN_FILE", str(tmp_path / "token"))
    assert HeedClient.from_environment().serving_model() is None
    assert server.requests[0][3]["Authorization"] == "Bearer heed_secret"


def test_pages_are_followed_and_filters_sent(serve):
    def respond(_method, path, _body):
        page = {"results": [{"n": 3}], "next": None} if "cursor=two" in path else {"results": [{"n": 1}], "next": "two"}
        return 200, page

    server = serve(respond)
    assert [row["n"] for row in HeedClient(server.url).prompts(split="train", use_case=None)] == [1, 3]
    assert "split=train" in server.requests[0][1]
    assert "use_case" not in server.requests[0][1]


def test_rows_are_brought_in_requests_of_limited_size(serve):
    server = serve(lambda _m, _p, body: (200, {"counts": {"new": len(json.loads(body)["rows"])}}))
    assert HeedClient(server.url).bring_responses({"n": n} for n in range(1234)) == {"new": 1234}
    assert len(server.requests) == 3


def test_an_export_is_waited_for_fetched_once_and_verified(serve, tmp_path):
    source = tmp_path / "source" / "v0007"
    write_example(source)
    states = iter(["building", "building", "ready"])

    def respond(method, path, _body):
        if "/files/" in path:
            return 200, (source / path.rpartition("/")[2]).read_bytes()
        return 200, {"id": 1, "name": "v0007", "status": next(states)}

    server = serve(respond)
    client = HeedClient(server.url)
    assert client.build_export({"review": "accepted"}, poll_seconds=0.01, key="night-1")["name"] == "v0007"
    assert server.requests[0][3]["Idempotency-Key"] == "night-1"
    folder = client.fetch_export("v0007", tmp_path / "fetched")
    assert read_export(folder).manifest == read_export(source).manifest
    count = len(server.requests)
    assert client.fetch_export("v0007", tmp_path / "fetched") == folder
    assert len(server.requests) == count

    (source / "rankings.jsonl").write_bytes(b"")
    with pytest.raises(ContractError, match=r"rankings\.jsonl"):
        client.fetch_export("v0007", tmp_path / "damaged")
    assert list((tmp_path / "damaged").iterdir()) == []


def test_a_registered_model_is_fetched_by_path_or_url_and_checked(tmp_path):
    folder = tmp_path / "org-policy"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(b"w")
    write_model_manifest(
        folder, name="org/policy", stage="ppo", parents={}, export=None, config={}, metrics={}, seed=None
    )
    model = {"name": "org/policy", "manifest_sha256": hash_file(folder / "manifest.json")}
    assert HeedClient.fetch_model(model | {"uri": str(folder)}) == folder
    copy = HeedClient.fetch_model(model | {"uri": f"file://{folder}"}, tmp_path / "fetched")
    assert copy.parent == tmp_path / "fetched"
    assert read_model_manifest(copy) == read_model_manifest(folder)
    assert HeedClient.fetch_model(model | {"uri": f"file://{folder}"}, tmp_path / "fetched") == copy

    uri = HeedClient.publish_model(folder, f"file://{tmp_path}/store")
    assert read_model_manifest(HeedClient.fetch_model(model | {"uri": uri}, tmp_path / "again")) == read_model_manifest(
        folder
    )
    (tmp_path / "store" / uri.rpartition("/")[2] / "sub" / "weights").unlink()
    HeedClient.publish_model(folder, f"file://{tmp_path}/store")  # published whole before: not sent again
    assert not (tmp_path / "store" / uri.rpartition("/")[2] / "sub" / "weights").exists()
    with pytest.raises(ClientError, match="is not there"):
        HeedClient.fetch_model(model | {"uri": str(tmp_path / "none")})
    with pytest.raises(ClientError, match="none"):
        HeedClient.fetch_model(model | {"uri": f"file://{tmp_path}/none"}, tmp_path / "other")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ClientError, match="another manifest than was registered"):
        HeedClient.fetch_model(model | {"uri": str(folder)})
