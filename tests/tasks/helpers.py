"""Small files in the formats of the official ones."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from rims.tasks import smnist


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """Bytes in the IDX format of MNIST."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path: Path, content: bytes) -> None:
    """The content; compressed when the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Ten images to learn from and seven to test with, known by their checksums."""
    arrays = mnist(monkeypatch)
    for name, array in arrays.items():
        write(folder / "mnist" / f"{name}.gz", idx(array))
    return arrays


def mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The arrays of :func:`write_mnist` by the names of their files."""
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": random.integers(0, 256, (10, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
        "t10k-images-idx3-ubyte": random.integers(0, 256, (7, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([3, 1, 4, 1, 5, 9, 2], np.uint8),
    }
    monkeypatch.setattr(smnist, "MD5", {name: md5(idx(array)) for name, array in arrays.items()})
    return arrays


def python_2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """{"batch_label": ..., "data": pixels, "labels": labels}, opcode by opcode as Python 2 wrote it: with
    byte strings, which Python 3's pickle cannot write."""

    def string(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(number: int) -> bytes:
        return b"J" + struct.pack("<i", number)

    data = pixels.tobytes()
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n"
        + b"K\x00\x85"
        + string(b"b")
        + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array = empty + b"(K\x01" + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(data)) + data + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = string(b"batch_label") + string(b"training batch 1 of 5") + string(b"data") + array
    return b"\x80\x02}(" + items + string(b"labels") + numbers + b"u."
