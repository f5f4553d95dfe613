"""Starts, parks and ends the servers that are measured. Knows no statistics.

Only one engine may use the processors at a time, and some spin while idle: whoever's turn it is
not is stopped (SIGSTOP) and continued later, so that each one starts once.
"""

import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from install import SetupError
from machine import group_seconds
from works import LLAMA, OURS, VLLM

PROMPT = "The capital of France is"
SERVED_NAME = "smollm2"
# 10 streams of up to 800 tokens each. vLLM's pool counts in GiB and holds 46,592 tokens.
CONTEXT, SLOTS, BLOCK = 8192, 10, 16


@dataclass(frozen=True)
class Launch:
    """How a server is started; `{port}` stands for its port."""

    engine: str
    precision: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    def shown(self, folders: list[pathlib.Path]) -> str:
        """The command line as it may be published: without where things lie on this machine."""
        words = [f"{key}={value}" for key, value in self.env.items()] + self.command
        text = " ".join(words)
        for folder in sorted(folders, key=lambda folder: -len(str(folder))):
            text = text.replace(f"{folder}/", "").replace(str(folder), ".")
        return text


@dataclass(frozen=True)
class Ours:
    """Our binary, and what this build of it can do."""

    binary: pathlib.Path
    threads: int
    takes_threads: bool
    dtypes: frozenset[str]

    @classmethod
    def probe(cls, binary: pathlib.Path, threads: int) -> "Ours":
        def said(*arguments: str) -> str:
            command = [str(binary), *arguments]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        serve = said("serve", "--help")
        dtypes = frozenset(d for d in ("f32", "bf16", "quantized") if f"- {d}:" in serve)
        return cls(binary, threads, "--threads" in serve, dtypes)

    def dtype(self, precision: str) -> str:
        return "bf16" if precision == "bf16" else "quantized"

    def lacks(self, precision: str) -> str | None:
        """Why this build cannot compute in a precision."""
        dtype = self.dtype(precision)
        return None if dtype in self.dtypes else f"this build has no --dtype {dtype}"

    @property
    def env(self) -> dict[str, str]:
        return {"RAYON_NUM_THREADS": str(self.threads)}

    def model(self, precision: str, files: dict[str, pathlib.Path]) -> pathlib.Path:
        return files["hf"] if precision == "bf16" else files[precision]

    def launch(self, precision: str, files: dict[str, pathlib.Path]) -> Launch:
        command = [str(self.binary), "serve", "--model", str(self.model(precision, files)),
                   "--offline", "--dtype", self.dtype(precision), "--served-model-name", SERVED_NAME,
                   "--block-size", str(BLOCK), "--kv-blocks", str(CONTEXT // BLOCK),
                   "--port", "{port}"]
        if self.takes_threads:
            command += ["--threads", str(self.threads)]
        return Launch(OURS, precision, command, self.env)

    def in_process(self, precision: str, files: dict[str, pathlib.Path]) -> str:
        """The same as an engine of `yardstick run`, within its process."""
        spec = (f"embedded?model={self.model(precision, files)}&dtype={self.dtype(precision)}"
                f"&block_size={BLOCK}&kv_blocks={CONTEXT // BLOCK}")
        return spec + (f"&threads={self.threads}" if self.takes_threads else "")


def llama_launch(
    folder: pathlib.Path, precision: str, files: dict[str, pathlib.Path], threads: int
) -> Launch:
    # --cache-ram 0: prompts are never asked twice, so keeping them would only cost.
    command = [str(folder / "llama-server"), "-m", str(files[precision]), "-t", str(threads),
               "-tb", str(threads), "-c", str(CONTEXT), "-np", str(SLOTS), "--cache-ram", "0",
               "--no-webui", "--offline", "--host", "127.0.0.1", "--port", "{port}"]
    return Launch(LLAMA, precision, command, {"LD_LIBRARY_PATH": str(folder)})


def vllm_launch(
    venv: pathlib.Path, files: dict[str, pathlib.Path], threads: int, cache: pathlib.Path
) -> Launch:
    processors = sorted(os.sched_getaffinity(0))[:threads]
    command = [str(venv / "bin" / "vllm"), "serve", str(files["hf"]), "--served-model-name",
               SERVED_NAME, "--dtype", "bfloat16", "--max-model-len", "2048",
               "--host", "127.0.0.1", "--port", "{port}"]
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # All of them compute; by default one is kept for the process that speaks HTTP.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(cache / "vllm-cache"),
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    # vLLM advises it; the package that brings it is among those that vLLM requires on x86.
    if (openmp := venv / "lib" / "libiomp5.so").exists():
        env["LD_PRELOAD"] = str(openmp)
    return Launch(VLLM, "bf16", command, env)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server, in a process group of its own."""

    def __init__(self, launch: Launch, logs: pathlib.Path) -> None:
        self.launch = launch
        self.port = free_port()
        self.log = logs / f"{launch.name.replace(' ', '-')}.log"
        command = [word.replace("{port}", str(self.port)) for word in launch.command]
        self.started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, env={**os.environ, **launch.env},
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cpu_seconds(self) -> float:
        return group_seconds(self.process.pid)

    def first_token(self, patience: float) -> float:
        """Seconds from the spawn to the first streamed token, asked for as soon as it listens."""
        deadline = self.started + patience
        while time.perf_counter() < deadline:
            self.check()
            try:
                for text in stream(self.port, max_tokens=1):
                    if text:
                        return time.perf_counter() - self.started
            except (OSError, http.client.HTTPException):
                time.sleep(0.002)
        raise SetupError(f"{self.launch.name} gave no token within {patience:.0f} s, see {self.log}")

    def check(self) -> None:
        if (code := self.process.poll()) is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
            raise SetupError(f"{self.launch.name} ended with {code}, see {self.log}:\n{tail}")

    def answer(self) -> str:
        """A greedy continuation: it tells whether the weights are the right ones."""
        return "".join(stream(self.port, max_tokens=12))

    def park(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        self.check()
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.process.pid, number)
                os.killpg(self.process.pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if not group_lives(self.process.pid):
                return


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stream(port: int, max_tokens: int) -> Iterator[str]:
    """Texts of a streamed completion as they come."""
    body = {"model": SERVED_NAME, "prompt": PROMPT, "max_tokens": max_tokens, "stream": True,
            "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status not in (200, 503):
            reason = response.read()[:200].decode(errors="replace")
            raise SetupError(f"asked for a completion, got status {response.status}: {reason}")
        if response.status == 503:  # It still loads.
            raise http.client.HTTPException("status 503")
        while line := response.readline():
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield from (choice.get("text", "") for choice in json.loads(data)["choices"])
    finally:
        connection.close()


@contextmanager
def started(launch: Launch, logs: pathlib.Path) -> Iterator[Server]:
    """A server that is ended whatever happens."""
    server = Server(launch, logs)
    try:
        yield server
    finally:
        server.stop()
