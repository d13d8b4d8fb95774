"""Sequential MNIST at a resolution that differs between training and test (paper 4.1, D.3, Table 1)."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from rims.tasks import files
from rims.tasks.base import Tokens, register
from rims.tasks.images import Images, ImageTask, Splits, split

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Of the decompressed contents: compressed anew, a file is still the same data."""

ARCHIVE_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""Of the .gz files as the mirrors have them."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)

FOLDERS = ("mnist/", "MNIST/raw/", "")
"""Where in the data folder the files are looked for: its own place, torchvision's, and the folder itself."""

WHITE = 128
"""The least value that is white: pixel / 255 rounded to 0 or 1."""


@register
@dataclass
class SequentialMNIST(ImageTask):
    """Handwritten digits in black and white, trained at 14 x 14 (196 steps), tested at up to 28 x 28 (784).

    The paper binarises after scaling, the released code before; with nearest scaling, which copies pixels and
    mixes none, both are the same. 48,000 images to learn from and 12,000 for validation, by a fixed
    permutation; all 10,000 test images, where the released code drops those of the last, incomplete batch.
    The released vocabulary is 10, as its outputs; here it is the two values that there are.
    """

    name: ClassVar[str] = "smnist"

    resolution: int = 14
    """Side of the images in training; the sequence has its square in steps."""

    test_resolutions: tuple[int, ...] = (14, 16, 19, 24, 28)
    """Sides to test at."""

    @property
    def input(self) -> Tokens:
        return Tokens(2)

    def splits(self) -> Splits:
        return _load(files.data_dir())


@functools.lru_cache(maxsize=1)
def _load(folder: Path | None) -> Splits:
    return {
        name: Images((images.pixels >= WHITE).to(torch.uint8), images.labels)
        for name, images in grey(folder).items()
    }


def grey(folder: Path | None) -> Splits:
    """The images as the files have them, bytes, in the splits of :class:`SequentialMNIST`; from the data
    folder, or downloaded. Raises UserError when files are missing or damaged."""
    known, test = (
        Images(
            torch.from_numpy(_read(folder, f"{part}-images-idx3-ubyte", 3).copy()),
            torch.from_numpy(_read(folder, f"{part}-labels-idx1-ubyte", 1).astype(np.int64)),
        )
        for part in ("train", "t10k")
    )
    return split(known, test)


def _read(folder: Path | None, name: str, dimensions: int) -> np.ndarray:
    """An array in the IDX format: two zero bytes, the type (8: unsigned bytes), the number of dimensions, the
    dimensions as big-endian integers, the values."""
    if folder is None:
        path = files.download([f"{mirror}/{name}.gz" for mirror in MIRRORS], ARCHIVE_MD5[name], "mnist")
    else:
        places = [f"{place}{name}{ending}" for place in FOLDERS for ending in ("", ".gz")]
        path = files.find(folder, places, f"MNIST file {name}")
    content = files.read(path, MD5[name])
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
