"""An engine: the server process of one policy, on a port of its own on this machine, checked before it is used."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx

from training.contract import ModelManifest, read_model_manifest
from training.errors import StageError
from training.front import Served

if TYPE_CHECKING:
    from training.serve import Config

Kind = Literal["transformers", "vllm"]


class Engine:
    """One server of one model folder, that dies with us. Raises StageError or ContractError for a folder it cannot serve."""

    def __init__(self, config: Config, folder: Path):
        manifest = manifest_of(folder)
        self.config, self.folder = config, folder
        self.port = _free_port()
        model = manifest.name if config.engine == "vllm" else str(folder)
        self.served = Served(manifest.name, f"http://127.0.0.1:{self.port}", model, manifest.few_shot_prefix)
        self.process: subprocess.Popen[bytes] | None = None
        self.retired_at: float | None = None

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it has answered. Raises StageError, having stopped it, if it does not come up."""
        arguments = command(self.config, self.folder, self.served.name, self.port)
        self.process = subprocess.Popen(arguments, env=_environment(self.config), preexec_fn=_die_with_parent)
        try:
            self._wait_until_up()
            self._ask_once()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, by force if it lingers."""
        if self.process and self.is_alive:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.config.start_seconds
        while time.monotonic() < deadline:
            if not self.is_alive:
                status = self.process.returncode if self.process else None
                raise StageError(f"{self.config.engine} ended with status {status} before it was up")
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.served.url}/health", timeout=2, trust_env=False).is_success:
                    return
            time.sleep(0.1)
        raise StageError(f"{self.config.engine} was not up within {self.config.start_seconds:.0f} s")

    def _ask_once(self) -> None:
        """One short answer: a server may be up with a model that cannot write."""
        body = {"model": self.served.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        try:
            answer = httpx.post(
                f"{self.served.url}/v1/chat/completions", json=body, timeout=self.config.start_seconds, trust_env=False
            )
        except httpx.TransportError as error:
            raise StageError(f"it is up and does not answer ({type(error).__name__})") from None
        if not answer.is_success:
            raise StageError(f"it is up and answers with status {answer.status_code}: {answer.text[:200]}")


def manifest_of(folder: Path, *, verify: bool = True) -> ModelManifest:
    """The manifest of a model that writes text. Raises StageError or ContractError for what can never be served."""
    manifest = read_model_manifest(folder, verify=verify)
    if manifest.stage == "rm":
        raise StageError(f"{folder}: a reward model writes no text")
    return manifest


def command(config: Config, folder: Path, name: str, port: int) -> list[str]:
    """The engine's command line. transformers is pinned to the folder: it refuses requests that name another model."""
    address = ["--host", "127.0.0.1", "--port", str(port)]
    more = shlex.split(config.engine_args)
    if config.engine == "vllm":
        return [vllm(), "serve", str(folder), *address, "--served-model-name", name, *more]
    program = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    return [*program, *address, "--device", config.device, "--log-level", "error", *more]


def vllm() -> str:
    """vLLM's program: beside this Python, else on the PATH. Raises StageError when it is not installed."""
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.exists() else shutil.which("vllm")
    if found is None:
        raise StageError("vllm is not installed here (pip install vllm, on a machine with a GPU)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(config: Config) -> dict[str, str]:
    threads = str(config.threads)
    cache = Path(config.state).with_name("serve-hub-cache").resolve()
    cache.mkdir(parents=True, exist_ok=True)  # GET /v1/models answers 500 where there is no cache folder
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **offline}


def _die_with_parent() -> None:
    """Have the kernel end the child when we are killed, so that no orphan holds memory (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
