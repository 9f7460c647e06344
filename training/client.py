"""The training half's way to the web half: a client of `/api/v1/` that waits for a server that is down.

HEED_URL says where (http://127.0.0.1:8000), HEED_TOKEN or HEED_TOKEN_FILE who. Every call may be sent again: reads are
harmless, and the API recognises a repeated write by its content.
"""

import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import msgspec

from training.contract import (
    DATA_FILES,
    PAIR_FILES,
    ContractError,
    ExportManifest,
    GateVerdict,
    atomic_folder,
    hash_file,
    read_export,
    read_model_manifest,
)
from training.errors import StageError

RETRIED = {408, 425, 429, 500, 502, 503, 504}
"""Answers that another try may change. 500 is among them: a server killed in the middle may say so once."""
LONGEST_PAUSE_SECONDS = 30.0
PAGE_ROWS = 500
PAGE_BYTES = 4 * 2**20


class ClientError(StageError):
    """The server said no, or stayed away for longer than we wait. The message names request, status and reason."""


class HttpClient:
    """JSON over HTTP with retries and growing, jittered pauses; one line on stderr when it begins to wait."""

    def __init__(
        self, url: str, token: str | None = None, *, patience_seconds: float = 900, timeout_seconds: float = 120
    ):
        if not url.startswith(("http://", "https://")):
            raise ClientError(f"{url}: expected an address that begins with http:// or https://")
        self.url = url.rstrip("/")
        self.patience_seconds = patience_seconds
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(timeout_seconds, connect=10)
        # trust_env=False: a proxy meant for the internet must not see our token, nor break 127.0.0.1
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to a request, sent again until the server gives one. Raises ClientError for 4xx, or out of patience."""
        deadline, pause, told = time.monotonic() + self.patience_seconds, 0.25, False
        while True:
            response, problem = self._try(method, path, options)
            if response is not None and response.status_code not in RETRIED:
                if response.is_success:
                    return response
                raise ClientError(f"{method} {self.url}{path}: {problem}")
            wait = max(_retry_after(response), pause * random.uniform(0.5, 1.0))
            if time.monotonic() + wait > deadline:
                raise ClientError(f"{method} {self.url}{path}: {problem}; gave up after {self.patience_seconds:.0f} s")
            if not told:
                print(f"{self.url}: {problem}; trying again for up to {self.patience_seconds:.0f} s", file=sys.stderr)
                told = True
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _try(self, method: str, path: str, options: dict[str, Any]) -> tuple[httpx.Response | None, str]:
        """One attempt: the response if there was one, and what is wrong with it in a line."""
        try:
            response = self._http.request(method, self.url + path, **options)
        except httpx.TransportError as error:
            return None, f"no answer ({type(error).__name__}: {error})"
        return response, _problem(response)

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a GET; parameters that are None or empty are left out."""
        given = {name: value for name, value in params.items() if value not in (None, "", ())}
        return self.request("GET", path, params=given).json()

    def post(self, path: str, body: Any, *, key: str | None = None) -> Any:
        """The JSON answer to a POST of JSON; with an idempotency key, the answer of the first time."""
        return self.send(path, body, key=key).json()

    def send(self, path: str, body: Any, *, key: str | None = None) -> httpx.Response:
        """The whole answer to a POST of JSON, where its headers matter."""
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        return self.request("POST", path, content=msgspec.json.encode(body), headers=headers)

    def stream_to(self, path: str, file: Path) -> None:
        """Download to a file in pieces; a broken download is tried again from its start."""
        deadline, pause = time.monotonic() + self.patience_seconds, 0.25
        while True:
            try:
                with self._http.stream("GET", self.url + path) as response:
                    if not response.is_success:
                        response.read()
                        problem = _problem(response)
                        if response.status_code not in RETRIED:
                            raise ClientError(f"GET {self.url}{path}: {problem}")
                    else:
                        with file.open("wb") as opened:
                            for piece in response.iter_bytes():
                                opened.write(piece)
                        return
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() + pause > deadline:
                raise ClientError(f"GET {self.url}{path}: {problem}; gave up after {self.patience_seconds:.0f} s")
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _retry_after(response: httpx.Response | None) -> float:
    """Seconds that the server asked us to wait, at most the longest pause; 0 when it named none."""
    value = response.headers.get("Retry-After", "") if response is not None else ""
    try:
        seconds = float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)


def _problem(response: httpx.Response) -> str:
    """An error answer in one line: the problem JSON's detail and first places where it has them."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    reason = str(body.get("detail") or body.get("title") or response.reason_phrase)
    places = [f"{e.get('place')}: {e.get('message')}" for e in body.get("errors", []) if isinstance(e, dict)]
    more = f" ({'; '.join(places[:3])}{'; …' if len(places) > 3 else ''})" if places else ""
    return " ".join(f"{response.status_code} {reason}{more}".split())


class HeedClient(HttpClient):
    """The endpoints of the web half that training uses."""

    @classmethod
    def from_environment(cls, **options: Any) -> "HeedClient":
        """A client for HEED_URL with HEED_TOKEN, or the token in the file HEED_TOKEN_FILE. Raises ClientError if unset."""
        url = os.environ.get("HEED_URL")
        if not url:
            raise ClientError("HEED_URL is not set: the web half's address, for example http://127.0.0.1:8000")
        return cls(url, _token(), **options)

    # prompts and responses

    def prompts(self, *, limit: int | None = None, **filters: Any) -> Iterator[dict[str, Any]]:
        """Prompts by id, page by page. Filters: split, use_case, kind, not_sampled_by (a model), without_tasks (a kind)."""
        return islice(self._pages("/api/v1/prompts/", **filters), limit)

    def least_covered(self, *, task: str, limit: int, seed: int = 0, **filters: Any) -> list[dict[str, Any]]:
        """The prompts that a batch of this kind should take next; filters: split, use_case."""
        return self.get("/api/v1/prompts/least-covered/", task=task, limit=limit, seed=seed, **filters)["results"]

    def bring_prompts(self, rows: Iterable[dict[str, Any]]) -> dict[str, int]:
        """Import prompt rows; those already there are counted as present. Returns the summed counts."""
        return self._bring("/api/v1/prompts/", rows)

    def bring_responses(self, rows: Iterable[dict[str, Any]]) -> dict[str, int]:
        """Import response rows; an equal external_id for the same prompt and model is the same response."""
        return self._bring("/api/v1/responses/", rows)

    def create_batch(self, **fields: Any) -> dict[str, Any]:
        """Order a batch; asked again with the same name and fields, the server answers with the one that exists."""
        return self.post("/api/v1/batches/", fields)

    def batch_evaluation(self, batch: int, *, origin: str = "person") -> dict[str, Any]:
        """What an evaluation batch says so far: win rates, ratings, flags; `is_complete` once nothing is open. docs/api.md."""
        return self.get(f"/api/v1/batches/{batch}/evaluation/?origin={origin}")

    # exports

    def count_labels(self, query: dict[str, Any] | None = None) -> dict[str, int]:
        """How many labels an export of this selection would hold now: demonstrations, rankings, and held-out labelers'."""
        return self.post("/api/v1/exports/count/", {"query": query or {}})

    def build_export(
        self, query: dict[str, Any] | None = None, *, poll_seconds: float = 1.0, key: str | None = None
    ) -> dict[str, Any]:
        """Have an export built and wait for it. The same selection of the same data gives the export there is.

        Ordered again with the same `key` within a day, it is the same order, whatever labels have come since.
        """
        export = self.post("/api/v1/exports/", {"query": query or {}}, key=key)
        deadline = time.monotonic() + self.patience_seconds
        while export["status"] == "building":
            if time.monotonic() > deadline:
                raise ClientError(f"export {export['id']}: still building after {self.patience_seconds:.0f} s")
            time.sleep(poll_seconds)
            export = self.get(f"/api/v1/exports/{export['id']}/")
        if export["status"] != "ready":
            raise ClientError(f"export {export['id']}: {export['status']}: {export.get('error', '')}".rstrip(": "))
        return export

    def fetch_export(self, name: str, root: str | os.PathLike[str]) -> Path:
        """Download the export `name` into `root/name`, verified; one that is there and whole is not fetched again."""
        folder = Path(root, name)
        if folder.exists():
            read_export(folder)
            return folder
        with atomic_folder(folder) as building:
            self.stream_to(f"/api/v1/exports/{name}/files/manifest.json", building / "manifest.json")
            listed = (building / "manifest.json").read_text(encoding="utf-8", errors="replace")
            pairs = [file for file in PAIR_FILES if f'"{file}"' in listed]  # read_export checks all of it below
            for file in ("README.md", *DATA_FILES, *pairs):
                self.stream_to(f"/api/v1/exports/{name}/files/{file}", building / file)
            manifest: ExportManifest = read_export(building).manifest
            if manifest.name != name:
                raise ContractError(f"{self.url}: asked for export {name}, got {manifest.name}")
        return folder

    # models

    def register_model(self, folder: str | os.PathLike[str], *, uri: str | None = None) -> dict[str, Any]:
        """Register a model folder by its manifest; the weights stay where they are, at `uri` (default: the folder)."""
        read_model_manifest(folder)  # a damaged folder is never registered
        text = Path(folder, "manifest.json").read_text(encoding="utf-8")
        body = {"manifest": text, "uri": uri or str(Path(folder).resolve())}
        return self.post("/api/v1/models/", body)

    def models(self) -> Iterator[dict[str, Any]]:
        """Registered models, newest first."""
        return self._pages("/api/v1/models/")

    @staticmethod
    def publish_model(folder: str | os.PathLike[str], root: str) -> str:
        """Copy a model folder below an fsspec URL and return its own URL. The manifest comes last, and is what a repeat looks for."""
        folder = Path(folder)
        name, digest = folder.name, hash_file(folder / "manifest.json")
        uri = f"{root.rstrip('/')}/{quote(name, safe='')}-{digest[:12]}"
        _upload(folder, uri)
        return uri

    def record_evaluation(
        self, model: str, *, name: str, metrics: dict[str, Any], config: dict[str, Any]
    ) -> dict[str, Any]:
        """Record figures about a model version; equal figures are recorded once."""
        return self.post(
            f"/api/v1/models/{quote(model)}/evaluations/", {"name": name, "metrics": metrics, "config": config}
        )

    def model(self, name: str) -> dict[str, Any]:
        """A registered model with its manifest."""
        return self.get(f"/api/v1/models/{quote(name)}/")

    def evaluations(self, model: str) -> Iterator[dict[str, Any]]:
        """Evaluations of a model, newest first."""
        return self._pages(f"/api/v1/models/{quote(model)}/evaluations/")

    def record_gate_check(self, model: str, *, rules: str, verdicts: Sequence[GateVerdict]) -> dict[str, Any]:
        """Keep what the gate said of a model, without promoting it. Equal verdicts under equal rules are kept once."""
        return self.post(f"/api/v1/models/{quote(model)}/gate-checks/", {"rules": rules, "verdicts": verdicts})

    def promote(
        self,
        model: str,
        *,
        reason: str,
        metrics: dict[str, Any] | None = None,
        rules: str = "",
        verdicts: Sequence[GateVerdict] = (),
        override_by: str = "",
        seen_serving: str | None = None,
    ) -> dict[str, Any]:
        """Make a policy the one that serves; promoting the one that serves already changes nothing.

        `verdicts` under `rules` (the file's text) are kept, also when they refuse it: then ClientError names the rules, unless
        `override_by` names the admin who decides so. `seen_serving`: the policy that is to be replaced, "" for none;
        ClientError when another serves by now.
        """
        body: dict[str, Any] = {"reason": reason, "metrics": metrics or {}, "override_by": override_by}
        if seen_serving is not None:
            body["seen_serving"] = seen_serving
        if verdicts:
            body["gate"] = {"rules": rules, "verdicts": verdicts}
        return self.post(f"/api/v1/models/{quote(model)}/promote/", body)

    def rollback(self, *, reason: str, seen_serving: str) -> dict[str, Any]:
        """Let the policy serve again that `seen_serving` replaced. Raises ClientError when another serves by now."""
        return self.post("/api/v1/promotions/rollback/", {"reason": reason, "seen_serving": seen_serving})

    def serving_model(self) -> dict[str, Any] | None:
        """The promoted model version, or None while there is none."""
        return self.get("/api/v1/promotions/serving/")["model"]

    def promotions(self) -> Iterator[dict[str, Any]]:
        """Every promotion, newest first."""
        return self._pages("/api/v1/promotions/")

    def promoted_models(self, count: int) -> list[dict[str, Any]]:
        """The `count` policies promoted last, newest first, each once."""
        models: dict[str, dict[str, Any]] = {}
        for promotion in self.promotions():
            models.setdefault(promotion["model"]["name"], promotion["model"])
            if len(models) == count:
                break
        return list(models.values())

    @staticmethod
    def fetch_model(model: dict[str, Any], root: str | os.PathLike[str] = "var/models/fetched") -> Path:
        """The folder of a registered model, here: its own path, or a copy of its fsspec URL under `root`.

        Raises ClientError when the folder's manifest is not the one that was registered.
        """
        name, uri, expected = model["name"], model["uri"], model["manifest_sha256"]
        folder = Path(uri)
        if "://" in uri:
            folder = Path(root, f"{quote(name, safe='')}-{expected[:12]}")
            if not folder.exists():
                with atomic_folder(folder) as building:
                    _download(uri, building)
        manifest = folder / "manifest.json"
        if not manifest.is_file() or hash_file(manifest) != expected:
            what = "has another manifest than was registered" if manifest.is_file() else "is not there"
            raise ClientError(f"model {name}: {folder} {what}")
        return folder

    def _pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, limit=PAGE_ROWS, **params)
            yield from page["results"]
            cursor = page["next"]
            if cursor is None:
                return

    def _bring(self, path: str, rows: Iterable[dict[str, Any]]) -> dict[str, int]:
        """Rows in requests of limited size; each request is all or nothing, and the whole is safe to repeat."""
        totals: dict[str, int] = {}
        for page in _pages_of(rows):
            for name, count in self.post(path, {"rows": page})["counts"].items():
                totals[name] = totals.get(name, 0) + count
        return totals


def _download(uri: str, folder: Path) -> None:
    """Copy a remote folder, whatever file system its URL names."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
        system.get(path.rstrip("/") + "/", str(folder) + "/", recursive=True)
    except (OSError, ImportError, ValueError) as error:
        raise ClientError(f"{uri}: {error}") from None


def _upload(folder: Path, uri: str) -> None:
    """Copy a folder to whatever file system the URL names, unless its manifest is there."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(uri)
        if system.exists(f"{path}/manifest.json"):
            return
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / "manifest.json"]
        for file in [*files, folder / "manifest.json"]:
            target = f"{path}/{file.relative_to(folder).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(file), target)
    except (OSError, ImportError, ValueError) as error:
        raise ClientError(f"{uri}: {error}") from None


def _pages_of(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of at most PAGE_ROWS rows and about PAGE_BYTES bytes of JSON."""
    page: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        size += len(msgspec.json.encode(row))
        page.append(row)
        if len(page) == PAGE_ROWS or size >= PAGE_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


def _token() -> str:
    if token := os.environ.get("HEED_TOKEN", "").strip():
        return token
    if path := os.environ.get("HEED_TOKEN_FILE"):
        try:
            return Path(path).read_text().strip()
        except OSError as error:
            raise ClientError(f"HEED_TOKEN_FILE: {path}: {error.strerror}") from None
    raise ClientError("HEED_TOKEN is not set: an API token, made by `python manage.py create_token`")
