"""The machine: what it is, whether anything else uses it, and its floors. Knows no engine."""

import os
import pathlib
import platform
import re
import subprocess
import time
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")

# oneDNN's product of two 2048 x 2048 bf16 matrices: what a processor reaches, not what its sheet says.
GEMM = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
n = 2048
a, b = torch.randn(n, n).bfloat16(), torch.randn(n, n).bfloat16()
best = float("inf")
for _ in range(12):
    start = time.perf_counter()
    a @ b
    best = min(best, time.perf_counter() - start)
print(2 * n**3 / best)
"""


def describe() -> dict[str, object]:
    info = pathlib.Path("/proc/cpuinfo").read_text()
    known = r"avx2|avx512f|avx512_vnni|avx512_bf16|amx_bf16|amx_int8|asimd|bf16"
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.M)
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "cpu_features": re.findall(rf"\b(?:{known})\b", flags.group(1) if flags else ""),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def slug(text: str) -> str:
    """A processor's name as part of a file name."""
    text = re.sub(r"\((?:r|tm)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


@dataclass(frozen=True)
class Ticks:
    """Processor seconds of the whole machine since it started."""

    at: float
    busy: float
    steal: float


def parse_stat(line: str) -> tuple[float, float]:
    """Busy and stolen processor seconds of the first line of /proc/stat."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS, steal / TICKS


def ticks() -> Ticks:
    with open("/proc/stat") as file:
        busy, steal = parse_stat(file.readline())
    return Ticks(time.monotonic(), busy, steal)


def group_seconds(group: int) -> float:
    """Processor seconds of all live processes of a process group."""
    total = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # It ended meanwhile.
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def busy_processors(seconds: float = 1.0) -> float:
    """Processors in use while nothing of ours runs."""
    before = ticks()
    time.sleep(seconds)
    after = ticks()
    return (after.busy - before.busy + after.steal - before.steal) / (after.at - before.at)


def wait_until_quiet(limit: float, patience: float) -> float:
    """Waits until fewer than `limit` processors are in use, `patience` seconds at most; how many were."""
    deadline = time.monotonic() + patience
    while (busy := busy_processors()) > limit and time.monotonic() < deadline:
        time.sleep(1)
    return busy


def build_read_bandwidth(cache: pathlib.Path) -> pathlib.Path:
    binary = cache / "read_bandwidth"
    command = ["gcc", "-O3", "-march=native", "-pthread", "-o", str(binary)]
    subprocess.run([*command, str(HERE / "read_bandwidth.c")], check=True)
    return binary


def read_bandwidth(binary: pathlib.Path, num_bytes: int, threads: int) -> float:
    """Bytes a second that `threads` threads read together from a buffer of `num_bytes`."""
    command = [str(binary), str(num_bytes), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def gemm_rate(python: pathlib.Path, threads: int) -> float:
    """bf16 multiply-adds a second, each counted as two, that oneDNN reaches."""
    command = [str(python), "-c", GEMM, str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
