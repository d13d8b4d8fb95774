"""The compiled passes as a library: built by the machine's C compiler at first use, for its processor, and
kept in the user's cache.

As a built file for every system, processor and Python would be much to keep, and torch.compile needs a
compiler too, the source is what is shipped. Without a compiler, or where anything else goes wrong, there is
no library, and the same passes run as torch operations."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from rims.nn.fast.native.layout import Sequence, declaration

HERE = Path(__file__).parent
FLAGS = (
    *("-O2", "-ftree-vectorize", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden"),
    # No sum is reordered and NaN stays NaN; errno and exceptions of floating point are nobody's business.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
TIMEOUT_SECONDS = 300


ENGINES = ("compiled", "torch")


def library() -> ctypes.CDLL | None:
    """The compiled passes, or None where they cannot be had. The environment variable RIMS_CPU names an
    engine for measuring: "torch" asks for none, "compiled" raises RuntimeError where there is none."""
    wanted = os.environ.get("RIMS_CPU") or None
    if wanted is not None and wanted not in ENGINES:
        raise ValueError(f"RIMS_CPU is {wanted!r}; expected one of {', '.join(ENGINES)}")
    if wanted == "torch":
        return None
    loaded, why_not = load()
    if wanted == "compiled" and loaded is None:
        raise RuntimeError(f"RIMS_CPU is 'compiled', but there are no compiled passes: {why_not}")
    return loaded


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None or platform.system() == "Windows":
        return None, f"no C compiler on {platform.system()}"
    try:
        loaded = ctypes.CDLL(str(built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{error}: {getattr(error, 'stderr', None) or ''}"
        logging.getLogger(__name__).info("torch operations instead of compiled passes: %s", reason)
        return None, reason
    for name in ("forward_f32", "forward_f64", "backward_f32", "backward_f64"):
        call = getattr(loaded, name)
        call.argtypes, call.restype = [ctypes.POINTER(Sequence)], ctypes.c_int64
    return loaded, ""


def built(compiler: str) -> Path:
    """The library's file, compiled unless this source was already, by this compiler and on such a processor.
    Raises OSError or subprocess.SubprocessError when that fails."""
    sources = {path.name: path.read_bytes() for path in sorted(HERE.glob("*.[ch]"))}
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT_SECONDS
    ).stdout
    known = [declaration().encode(), *sources.values(), " ".join(FLAGS).encode(), version, processor()]
    name = f"passes-{hashlib.sha256(b'|'.join(known)).hexdigest()[:16]}.so"
    folder = cache_folder()
    if (folder / name).exists():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        (Path(scratch) / "layout.h").write_text(declaration())
        command = [compiler, *FLAGS, "-include", f"{scratch}/layout.h", str(HERE / "sequence.c"), "-lm"]
        output = ["-o", f"{scratch}/{name}"]
        for native in (["-march=native"], ["-mcpu=native"], []):  # x86, ARM, whatever else
            done = subprocess.run(
                [*command, *native, *output], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        os.replace(Path(scratch) / name, folder / name)  # whole or not at all, whoever else builds it
    return folder / name


def cache_folder() -> Path:
    """Where libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rims"


def processor() -> bytes:
    """What the library is compiled for: homes are shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    return b"".join(line for line in lines if line.startswith((b"model name", b"flags", b"Features")))[:8192]
