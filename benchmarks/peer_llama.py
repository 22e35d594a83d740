"""The peer: llama.cpp as it lies in the source package of llama-cpp-python, fetched from the package index and built.

    python -m benchmarks.peer_llama [--peer-dir FOLDER] [--jobs 2] [--shape 2b4t small]

Builds the library for this machine, then peer_steps.cpp against it (all that cpu_model needs), then its server and its
own benchmarks: some two hundred files. GGUF files of the shapes are written last. What is there already is kept. Needs
a C++ compiler and cmake, and takes ninja where there is one. (The package's own Python server answers one request at a
time, so it is no peer.)
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer_gguf import HEADS, write_gguf
from benchmarks.shapes import CACHE, SHAPES, checkpoint

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
TOOLS = ("llama-server", "llama-bench", "llama-batched-bench")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be fetched from elsewhere
)


@dataclass(frozen=True, slots=True)
class Peer:
    """One version of the peer in the cache; nothing need be there yet."""

    cache: Path
    version: str = VERSION

    @property
    def source(self) -> Path:
        """llama.cpp inside the unpacked package."""
        return self.cache / f"llama_cpp_python-{self.version}" / "vendor" / "llama.cpp"

    @property
    def binaries(self) -> Path:
        return self.source.parents[1] / "build" / "bin"

    @property
    def server(self) -> Path:
        return self.binaries / "llama-server"

    @property
    def steps(self) -> Path:
        """peer_steps.cpp, built."""
        return self.binaries / "peer_steps"

    def gguf(self, shape: str, head: str) -> Path:
        """The model file of a shape, written if it is not there yet."""
        path = self.cache / "gguf" / f"{shape}-TQ2_0-{head}.gguf"
        if not path.exists():
            print(f"writing {path} ...")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            write_gguf(part, SHAPES[shape], head, checkpoint(shape, self.cache) / "tokenizer.json")
            part.rename(path)
        return path

    def describe(self) -> str:
        """Version and the instruction sets it was built for, as it says itself."""
        built_for = subprocess.run([self.steps], check=True, capture_output=True, text=True).stdout.strip()
        return f"llama.cpp of {PACKAGE} {self.version}: {built_for}"

    def require(self, program: Path) -> None:
        """Raises SystemExit with the cure when the program is not built."""
        if not program.exists():
            raise SystemExit(f"{program} is not there: run python -m benchmarks.peer_llama --peer-dir {self.cache}")


def fetch(peer: Peer) -> None:
    """Download the source package from the index and unpack it."""
    if peer.source.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        wanted = f"{PACKAGE}=={peer.version}"
        options = ["--no-binary", PACKAGE, "--no-deps", "--dest", scratch, wanted]
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        peer.cache.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            packed.extractall(peer.cache, filter="data")


def build(peer: Peer, jobs: int) -> None:
    """Compile what is missing or older than its source; what cpu_model needs comes first."""
    folder = peer.binaries.parent
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    if not (folder / "CMakeCache.txt").exists():
        subprocess.run(["cmake", "-S", str(peer.source), "-B", str(folder), *generator, *OPTIONS], check=True)
    compile_targets = ["cmake", "--build", str(folder), "-j", str(jobs), "--target"]
    subprocess.run([*compile_targets, "llama"], check=True)
    build_steps(peer)
    subprocess.run([*compile_targets, *TOOLS], check=True)


def build_steps(peer: Peer) -> None:
    """Compile peer_steps.cpp against the peer's headers and library."""
    source = Path(__file__).with_name("peer_steps.cpp")
    include = [f"-I{peer.source / 'include'}", f"-I{peer.source / 'ggml' / 'include'}"]
    library = [f"-L{peer.binaries}", "-lllama", f"-Wl,-rpath,{peer.binaries}", f"-Wl,-rpath-link,{peer.binaries}"]
    subprocess.run(["c++", "-O2", "-std=c++17", *include, str(source), *library, "-o", str(peer.steps)], check=True)


def main() -> None:
    """Fetch, build, write, and say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-dir", type=Path, default=CACHE)
    parser.add_argument("--version", default=VERSION, help=f"of {PACKAGE}")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shape", choices=list(SHAPES), nargs="*", default=["2b4t", "small"])
    args = parser.parse_args()
    peer = Peer(args.peer_dir, args.version)
    fetch(peer)
    build(peer, args.jobs)
    files = [peer.gguf(shape, head) for shape in args.shape for head in HEADS]
    print(f"{peer.describe()} in {peer.binaries}")
    subprocess.run([peer.server, "--version"], check=True)
    for file in files:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
