#!/usr/bin/env python3
"""Measures yardstick's client beside other harnesses, against one server whose timing is known.

    python3 benches/peers/harnesses.py

Installs the harnesses from packages, serves a script with `yardstick calibrate --serve`, runs each
harness against it in turn, and prints what it reported beside what the server really did, and the
processor time that it took. Linux; needs python3 (3.11) and cargo.
"""

import argparse
import datetime
import functools
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field

import machine
from install import SetupError, Venv, note, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
SGLANG = "sglang==0.5.23"
LLAMA_BENCHY = "llama-benchy==0.4.0"
TOKENIZERS = "tokenizers==0.23.3"
OPTIONAL = {"guidellm": "guidellm==0.8.1", "aiperf": "aiperf==0.13.0"}
NUM_TOKENS = 64
PROMPT_TOKENS = 128
# A harness that hangs is ended and named.
PATIENCE = 300.0

RUN_BENCH = """
import glob, importlib.machinery, importlib.util, sys
path = glob.glob(sys.argv[1] + '/sglang/srt/rust_extensions/_bench*.so')[0]
loader = importlib.machinery.ExtensionFileLoader('_bench', path)
spec = importlib.util.spec_from_loader('_bench', loader)
bench = importlib.util.module_from_spec(spec)
loader.exec_module(bench)
bench.run_argv(['sglang-bench', *sys.argv[2:]])
"""

TRAIN = """
import json, random, sys, tokenizers
random.seed(1)
letters = 'abcdefghijklmnopqrstuvwxyz'
words = [''.join(random.choices(letters, k=random.randint(2, 8))) for _ in range(6000)]
texts = [' '.join(random.choices(words, k=200)) for _ in range(400)]
model = tokenizers.Tokenizer(tokenizers.models.BPE())
model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
model.decoder = tokenizers.decoders.ByteLevel()
alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
trainer = tokenizers.trainers.BpeTrainer(vocab_size=6000, initial_alphabet=alphabet,
                                         special_tokens=['<|end|>'], show_progress=False)
model.train_from_iterator(texts, trainer)
model.save(sys.argv[1] + '/tokenizer.json')
config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|end|>'}
json.dump(config, open(sys.argv[1] + '/tokenizer_config.json', 'w'))
open(sys.argv[1] + '/book.txt', 'w').write('\\n'.join(texts))
"""


@dataclass(frozen=True)
class Load:
    """What the server does and how it is asked."""

    streams: int
    requests: int
    ttft_ms: float
    gap_ms: float

    def __str__(self) -> str:
        return (f"{self.streams} streams, {self.requests} requests, "
                f"TTFT {self.ttft_ms:g} ms, gap {self.gap_ms:g} ms")


LOADS = (Load(10, 100, 20, 5), Load(100, 1000, 100, 20), Load(1000, 2000, 200, 50))


@dataclass
class Result:
    """One harness under one load. Absent numbers are those that it does not report."""

    harness: str
    load: str
    true_ttft_p50: float | None = None
    true_ttft_p99: float | None = None
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    itl_p99: float | None = None
    spread_ms: float | None = None
    cpu_s: float | None = None
    cpu_us_per_token: float | None = None
    wall_s: float | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)


def rank(values: list[float], q: float) -> float | None:
    """Linear interpolation between order statistics, as all of these harnesses do."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * q
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@contextmanager
def served(yardstick: pathlib.Path, load: Load, truth: pathlib.Path):
    """The scripted server; ends with the block."""
    command = [str(yardstick), "calibrate", "--serve", "--scenario", "steady",
               "--ttft-ms", str(load.ttft_ms), "--gap-ms", str(load.gap_ms),
               "--tokens", str(NUM_TOKENS), "--truth", str(truth)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(timeout=20)


def timed(command: list[str], log: pathlib.Path, env: dict[str, str]) -> tuple[float, float, int]:
    """Processor time, wall time and exit code of a command with all its children."""
    began = time.monotonic()
    with log.open("ab") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **env})
        while True:
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() - began > PATIENCE:
                child.kill()
                _, status, usage = os.wait4(child.pid, 0)
                break
            time.sleep(0.02)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began, child.returncode


class Harness:
    """How one of them is asked, and where it says what."""

    name = ""
    env: dict[str, str] = {}

    def command(self, url: str, load: Load, out: pathlib.Path) -> list[str]:
        raise NotImplementedError

    def read(self, out: pathlib.Path, result: Result) -> None:
        raise NotImplementedError


class Yardstick(Harness):
    """The whole program, as a user runs it: prompts, records and reports included."""

    name = "yardstick"

    def __init__(self, binary: pathlib.Path) -> None:
        self.binary = binary

    def command(self, url: str, load: Load, out: pathlib.Path) -> list[str]:
        return [str(self.binary), "run", "--engine", f"openai={url}", "--experiment",
                "concurrent-warm", "--concurrency", str(load.streams), "--requests",
                str(load.requests), "--max-tokens", str(NUM_TOKENS), "--no-calibration",
                "--out", str(out / "run"), "--json"]

    def read(self, out: pathlib.Path, result: Result) -> None:
        case = json.loads((out / "run" / "summary.json").read_text())["cases"][0]
        result.ttft_p50, result.ttft_p99 = case["ttft_ms"]["p50"], case["ttft_ms"]["p99"]
        result.itl_p99 = case["itl_ms"]["p99"]
        if result.ttft_p99 is None:
            result.notes.append("n too small for a p99: the largest is shown")
            result.ttft_p99 = case["ttft_ms"]["max"]


class Sglang(Harness):
    """The Rust client in sglang's wheel, loaded without the rest of it."""

    name = "sglang (Rust)"

    def __init__(self, cache: pathlib.Path, tokenizer: pathlib.Path) -> None:
        self.folder = cache / "sglang"
        self.tokenizer = tokenizer
        if not self.folder.exists():
            note(f"installing {SGLANG}")
            wheels = cache / "wheels"
            log = cache / "sglang.log"
            run([sys.executable, "-m", "pip", "download", "--no-deps", SGLANG, "-d",
                 str(wheels)], log)
            wheel = next(wheels.glob("sglang-*.whl"), None)
            if wheel is None:
                raise SetupError(f"{SGLANG} has no wheel for this Python")
            with zipfile.ZipFile(wheel) as archive:
                wanted = [name for name in archive.namelist() if "rust_extensions" in name]
                archive.extractall(self.folder, wanted)

    def command(self, url: str, load: Load, out: pathlib.Path) -> list[str]:
        return [sys.executable, "-c", RUN_BENCH, str(self.folder), "--backend", "vllm-chat",
                "--base-url", url, "--model", "scripted", "--tokenizer", str(self.tokenizer),
                "--dataset-name", "random-ids", "--random-input-len", str(PROMPT_TOKENS),
                "--random-output-len", str(NUM_TOKENS), "--random-range-ratio", "1.0",
                "--num-prompts", str(load.requests), "--max-concurrency", str(load.streams),
                "--warmup-requests", "1", "--output-file", str(out / "o.jsonl"),
                "--output-details", "--disable-tqdm"]

    def read(self, out: pathlib.Path, result: Result) -> None:
        said = json.loads((out / "o.jsonl").read_text().splitlines()[-1])
        result.ttft_p50, result.ttft_p99 = said["median_ttft_ms"], said["p99_ttft_ms"]
        result.itl_p99 = said.get("p99_itl_ms")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, *_: object) -> None:
        return


class LlamaBenchy(Harness):
    """Sends batches of as many requests as there are streams; reports means alone."""

    name = "llama-benchy"

    def __init__(self, cache: pathlib.Path, tokenizer: pathlib.Path) -> None:
        self.tokenizer = tokenizer
        self.venv = Venv(cache / "venv")
        if not self.venv.version("llama-benchy"):
            note(f"installing {LLAMA_BENCHY} (350 MB)")
            self.venv.pip("install", LLAMA_BENCHY)
        # It takes the text of its prompts from a URL alone.
        files = functools.partial(Quiet, directory=str(tokenizer))
        self.books = http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)
        threading.Thread(target=self.books.serve_forever, daemon=True).start()

    def command(self, url: str, load: Load, out: pathlib.Path) -> list[str]:
        return [str(self.venv.folder / "bin" / "llama-benchy"), "--base-url", f"{url}/v1",
                "--model", "scripted", "--tokenizer", str(self.tokenizer), "--pp",
                str(PROMPT_TOKENS), "--tg", str(NUM_TOKENS), "--exact-tg", "--concurrency",
                str(load.streams), "--runs", str(max(1, load.requests // load.streams)),
                "--latency-mode", "none", "--no-adapt-prompt", "--skip-coherence", "--book-url",
                f"http://127.0.0.1:{self.books.server_port}/book.txt", "--format", "json", "--save-result",
                str(out / "o.json")]

    def read(self, out: pathlib.Path, result: Result) -> None:
        said = json.loads((out / "o.json").read_text())
        rows = said.get("benchmarks", said.get("results", []))
        ttft = rows[0].get("e2e_ttft") if rows else None
        mean = ttft.get("mean") if isinstance(ttft, dict) else ttft
        result.ttft_p50 = mean
        result.notes.append("its mean, not its median")


class Guidellm(Harness):
    """Brings torch along, some gigabytes: only where asked for."""

    name = "guidellm"

    def __init__(self, cache: pathlib.Path, tokenizer: pathlib.Path) -> None:
        self.tokenizer = tokenizer
        self.venv = Venv(cache / "guidellm")
        if not self.venv.version("guidellm"):
            note(f"installing {OPTIONAL['guidellm']} with torch")
            self.venv.pip("install", OPTIONAL["guidellm"])

    def command(self, url: str, load: Load, out: pathlib.Path) -> list[str]:
        return [str(self.venv.folder / "bin" / "guidellm"), "run", "--backend",
                f"kind=openai_http,target={url},model=scripted", "--profile",
                f"kind=concurrent,streams={load.streams}", "--constraint",
                f"kind=max_requests,count={load.requests}", "--data",
                f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={NUM_TOKENS}",
                "--tokenizer", f"kind=hf_auto,model={self.tokenizer}", "--output",
                f"kind=json,path={out / 'o.json'}", "--disable-console-interactive"]

    def read(self, out: pathlib.Path, result: Result) -> None:
        metrics = json.loads((out / "o.json").read_text())["benchmarks"][0]["metrics"]
        ttft = metrics["time_to_first_token_ms"]["successful"]
        result.ttft_p50, result.ttft_p99 = ttft["median"], ttft["percentiles"]["p99"]


class Aiperf(Harness):
    """A venv of 1.2 GB: only where asked for."""

    name = "aiperf"

    def __init__(self, cache: pathlib.Path, tokenizer: pathlib.Path) -> None:
        self.tokenizer = tokenizer
        self.venv = Venv(cache / "aiperf")
        if not self.venv.version("aiperf"):
            note(f"installing {OPTIONAL['aiperf']} (1.2 GB)")
            self.venv.pip("install", OPTIONAL["aiperf"])

    def command(self, url: str, load: Load, out: pathlib.Path) -> list[str]:
        return [str(self.venv.folder / "bin" / "aiperf"), "profile", "-m", "scripted", "--url", url,
                "--endpoint-type", "chat", "--streaming", "--concurrency", str(load.streams),
                "--request-count", str(load.requests), "--isl", str(PROMPT_TOKENS), "--osl",
                str(NUM_TOKENS), "--tokenizer", str(self.tokenizer), "--use-server-token-count",
                "--extra-inputs", "ignore_eos:true", "--ui", "none", "--artifact-dir", str(out)]

    def read(self, out: pathlib.Path, result: Result) -> None:
        said = json.loads(next(out.rglob("profile_export_aiperf.json")).read_text())
        ttft = said["time_to_first_token"]
        result.ttft_p50, result.ttft_p99 = ttft["p50"], ttft["p99"]


def measure(harness: Harness, load: Load, yardstick: pathlib.Path, folder: pathlib.Path) -> Result:
    """One harness under one load, and once with one request, whose cost is its start."""
    result = Result(harness.name, str(load))
    costs = []
    for part, asked in (("start", Load(1, 1, load.ttft_ms, load.gap_ms)), ("load", load)):
        out = folder / f"{harness.name.split()[0]}-{load.streams}-{part}"
        out.mkdir(parents=True)
        truth = out / "truth.jsonl"
        with served(yardstick, load, truth) as url:
            command = harness.command(url, asked, out)
            cpu, wall, code = timed(command, out / "log.txt", harness.env)
        if code != 0:
            tail = (out / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
            result.error = f"ended with {code}: {' '.join(tail)[:160]}"
            return result
        costs.append(cpu)
    result.cpu_s, result.wall_s = costs[1], wall
    # One request is in the start too.
    num_tokens = max(1, load.requests - 1) * NUM_TOKENS
    result.cpu_us_per_token = (costs[1] - costs[0]) / num_tokens * 1e6
    add_truth(truth, load, result)
    try:
        harness.read(out, result)
    except (OSError, KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        result.error = f"its result cannot be read: {error!r}"
    return result


def add_truth(path: pathlib.Path, load: Load, result: Result) -> None:
    """What the server did for the requests that were measured: the last ones to come."""
    truths = [json.loads(line) for line in path.read_text().splitlines()]
    truths = [truth for truth in truths if truth["events"]]
    truths.sort(key=lambda truth: truth["received_at_ns"])
    measured = truths[-load.requests:]
    ttft = [next(event[0] for event in truth["events"] if event[1] == "content") / 1e6
            for truth in measured]
    result.true_ttft_p50, result.true_ttft_p99 = rank(ttft, 0.5), rank(ttft, 0.99)
    wave = [truth["received_at_ns"] for truth in measured[:load.streams]]
    if len(wave) > 1:
        result.spread_ms = (max(wave) - min(wave)) / 1e6
    if len(measured) < load.requests:
        result.notes.append(f"the server answered {len(measured)} requests")


def table(results: list[Result], about: dict) -> str:
    """The record as markdown."""
    lines = [f"# Clients against one scripted server, {about['started_at'][:10]}", "",
             f"{about['cpu']}, {about['num_cpus']} processors; {NUM_TOKENS} tokens an answer. "
             "Made by `python3 benches/peers/harnesses.py`. The server's TTFT is from the request "
             "read to the first token written; a client's is what it reports. Processor time is "
             "user and system of the client alone, less that of a run of one request.", ""]
    for load in dict.fromkeys(result.load for result in results):
        lines += [f"## {load}", "",
                  "| client | TTFT p50 / p99, ms | server's, ms | ITL p99, ms | first wave spread, "
                  "ms | CPU, s | CPU a token, µs | wall, s |",
                  "| --- | --- | --- | --: | --: | --: | --: | --: |"]
        notes = []
        for result in (result for result in results if result.load == load):
            if result.error:
                lines.append(f"| {result.harness} | {result.error} |||||||")
                continue
            show = [f"{shown(result.ttft_p50)} / {shown(result.ttft_p99)}",
                    f"{shown(result.true_ttft_p50)} / {shown(result.true_ttft_p99)}",
                    shown(result.itl_p99), shown(result.spread_ms), shown(result.cpu_s),
                    shown(result.cpu_us_per_token, 1), shown(result.wall_s, 1)]
            lines.append(f"| {result.harness} | {' | '.join(show)} |")
            notes += [f"{result.harness}: {text}" for text in result.notes]
        lines += ["", *[f"- {text}" for text in notes], ""] if notes else [""]
    return "\n".join(lines)


def shown(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target" / "harnesses",
                        help="where harnesses and runs are kept [default: target/harnesses]")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches" / "record",
                        help="folder of the record [default: benches/record]")
    parser.add_argument("--yardstick", type=pathlib.Path,
                        help="binary to measure [default: built by cargo in release]")
    parser.add_argument("--with", dest="more", nargs="+", default=[], choices=sorted(OPTIONAL),
                        help="harnesses that bring gigabytes along")
    parser.add_argument("--without", nargs="+", default=[], choices=["sglang", "llama-benchy"],
                        help="leave these out")
    parser.add_argument("--streams", type=int, nargs="+", default=[load.streams for load in LOADS],
                        choices=[load.streams for load in LOADS], help="only these loads")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        binary = options.yardstick
        if binary is None:
            note("building yardstick")
            subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT,
                           check=True)
            binary = ROOT / "target" / "release" / "yardstick"
        binary = binary.resolve()
        tokenizer = cache / "tokenizer"
        if not (tokenizer / "tokenizer.json").exists():
            tokenizer.mkdir(exist_ok=True)
            venv = Venv(cache / "venv")
            if not venv.version("tokenizers"):
                venv.pip("install", TOKENIZERS)
            run([str(venv.python), "-c", TRAIN, str(tokenizer)], cache / "tokenizer.log")
        kinds = {"sglang": Sglang, "llama-benchy": LlamaBenchy, "guidellm": Guidellm,
                 "aiperf": Aiperf}
        wanted = [name for name in ("sglang", "llama-benchy") if name not in options.without]
        harnesses: list[Harness] = [Yardstick(binary)]
        harnesses += [kinds[name](cache, tokenizer) for name in [*wanted, *options.more]]
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        note(f"error: {error}")
        return 1
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = {"started_at": stamp, **machine.describe()}
    folder = cache / "runs" / stamp.replace(":", "")
    results = []
    for load in (load for load in LOADS if load.streams in options.streams):
        for harness in harnesses:
            if load.streams > 100 and isinstance(harness, LlamaBenchy):
                continue  # It opens more files than the usual limit allows.
            result = measure(harness, load, binary, folder)
            note(f"{load}: {result.harness}: {result.error or shown(result.ttft_p99) + ' ms p99'}")
            results.append(result)
    text = table(results, about)
    stem = options.out / f"harnesses-{machine.slug(str(about['cpu']))}-{stamp[:10]}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    record = {"schema_version": 1, **about, "results": [vars(result) for result in results]}
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
