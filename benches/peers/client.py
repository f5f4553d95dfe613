"""Drives one engine through one work with `yardstick run`, and reads its run directory."""

import json
import os
import pathlib
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from machine import Ticks, ticks
from works import Work


class RunFailed(Exception):
    """The client could not measure."""


@dataclass
class Sample:
    """One work done once by one arm."""

    round: int
    work: str
    arm: str
    # By metric; what the table shows.
    values: dict[str, float] = field(default_factory=dict)
    # Of each request, in the order in which they were sent.
    requests: list[dict[str, float | int | None]] = field(default_factory=list)
    # Processors that were in use by neither the engine nor the client, and stolen by the host.
    others: float = 0.0
    stolen: float = 0.0
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def plain(self) -> dict[str, object]:
        return asdict(self)


def command(binary: pathlib.Path, engine: str, model: pathlib.Path, work: Work, seed: int,
            out: pathlib.Path) -> list[str]:
    return [str(binary), "run", "--engine", engine, "--experiment", "concurrent-warm",
            "--model", str(model), "--prompt-tokens", str(work.prompt_tokens),
            "--max-tokens", str(work.max_tokens), "--concurrency", str(work.concurrency),
            "--requests", str(work.requests), "--seed", str(seed), "--name", work.id,
            "--out", str(out), "--json"]


def drive(words: list[str], env: dict[str, str]) -> tuple[dict, list[dict], float]:
    """Summary, measured requests, and processor seconds of the client."""
    before = os.times()
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **env})
    after = os.times()
    used = (after.children_user - before.children_user
            + after.children_system - before.children_system)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error")]
        raise RunFailed(said[0] if said else f"yardstick run ended with {done.returncode}")
    out = pathlib.Path(words[words.index("--out") + 1])
    lines = (out / "requests.jsonl").read_text().splitlines()
    requests = [json.loads(line) for line in lines]
    return json.loads(done.stdout), [r for r in requests if not r["warmup"]], used


def others(before: Ticks, after: Ticks, ours: float) -> tuple[float, float]:
    """Processors in use by neither engine nor client, and stolen, between two instants."""
    wall = after.at - before.at
    used = max(0.0, (after.busy - before.busy - ours) / wall)
    return round(used, 3), round((after.steal - before.steal) / wall, 3)


def read(summary: dict, requests: list[dict], work: Work) -> tuple[dict[str, float], list[str]]:
    """Metrics of a run's one case, and what must be said about them."""
    if not summary["cases"]:
        reasons = [absent["reason"] for absent in summary["absent"]]
        reasons += [warning["message"] for warning in summary["warnings"]]
        raise RunFailed("; ".join(reasons) or "no case was measured")
    case = summary["cases"][0]
    if case["num_ok"] != case["n"] or not case["n"]:
        raise RunFailed(f"{case['num_ok']} of {case['n']} requests completed: {case['errors']}")
    wrong = [r for r in requests if r["num_output_tokens"] != work.max_tokens
             or r["num_prompt_tokens"] != work.prompt_tokens]
    if wrong:
        found = (wrong[0]["num_prompt_tokens"], wrong[0]["num_output_tokens"])
        raise RunFailed(f"{len(wrong)} requests had {found} prompt and output tokens, "
                        f"expected {(work.prompt_tokens, work.max_tokens)}")
    notes = []
    if cached := sum(r["num_cached_tokens"] or 0 for r in requests):
        notes.append(f"{cached} prompt tokens came from a prefix cache")
    values = {"ttft_ms": case["ttft_ms"]["p50"]}
    if work.max_tokens == 1:
        values["prefill_tok_s"] = work.prompt_tokens / values["ttft_ms"] * 1e3
    else:
        values["decode_tok_s"] = case["decode_tokens_per_s"]["p50"]
        values["output_tok_s"] = case["output_tokens_per_s"]
    return values, notes


def request_row(record: dict) -> dict[str, float | int | None]:
    """What is kept of a request: instants in milliseconds since it was sent."""
    tokens = [event for event in record["events"] if event[1] in ("content", "reasoning")]
    gaps = [(b[0] - a[0]) / 1e6 for a, b in zip(tokens, tokens[1:])]
    return {
        "ttft_ms": round(tokens[0][0] / 1e6, 3) if tokens else None,
        "last_token_ms": round(tokens[-1][0] / 1e6, 3) if tokens else None,
        "gap_ms_p50": round(statistics.median(gaps), 3) if gaps else None,
        "gap_ms_max": round(max(gaps), 3) if gaps else None,
        "output_tokens": record["num_output_tokens"],
    }


def measure(sample: Sample, work: Work, words: list[str], env: dict[str, str],
            engine_seconds: Callable[[], float]) -> Sample:
    """Runs the client and fills the sample; a failure is kept in it."""
    engine_before, before = engine_seconds(), ticks()
    try:
        summary, requests, used = drive(words, env)
        sample.values, sample.notes = read(summary, requests, work)
        sample.requests = [request_row(record) for record in requests]
        used += engine_seconds() - engine_before
        sample.others, sample.stolen = others(before, ticks(), used)
    except RunFailed as error:
        sample.error = str(error)
    return sample
