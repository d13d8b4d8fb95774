"""Sequential CIFAR-10 at a resolution that differs between training and test (released code; neither version
of the paper reports it)."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from rims.errors import UserError
from rims.tasks import files
from rims.tasks.base import Split, Tokens, register
from rims.tasks.images import Images, ImageTask, Splits, split

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
SIDE, CHANNELS = 32, 3
NOISE_SEED = 10**9
"""Added to an image's index, so that the noise of no image is the stream of a small seed."""


@register
@dataclass
class SequentialCIFAR(ImageTask):
    """Ten kinds of things in colour, trained at 16 x 16 (256 steps), tested at up to 32 x 32 (1,024).

    A step is one pixel: three integers of 0..255, red, green and blue, each with its own embedding.
    40,000 images to learn from and 10,000 for validation, by a fixed permutation; all 10,000 test images. The
    released head has 256 outputs, of which 246 stand for nothing; here there are ten.
    """

    name: ClassVar[str] = "scifar"

    resolution: int = 16
    """Side of the images in training; the sequence has its square in steps."""

    test_resolutions: tuple[int, ...] = (16, 19, 24, 32)
    """Sides to test at."""

    test_noise: float = 0.0
    """Standard deviation of Gaussian noise on the test images alone; 1 is from black to white. The released
    code: 1 / 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.test_noise < float("inf"):
            raise ValueError(f"test_noise is {self.test_noise}; expected at least 0")

    @property
    def input(self) -> Tokens:
        return Tokens(256, channels=CHANNELS)

    def splits(self) -> Splits:
        return _load(files.data_dir())

    def pixels(self, split: Split, indices: Int[Tensor, " B"]) -> UInt8[Tensor, "B H W C"]:
        """The images at ``indices``, 32 x 32, with their noise: an image has the same at every resolution."""
        pixels = super().pixels(split, indices)
        if split != "test" or self.test_noise == 0:
            return pixels
        noise = torch.stack([_noise(index, pixels.shape[1:]) for index in indices.tolist()])
        return ((pixels.float() / 255 + self.test_noise * noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _noise(index: int, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(NOISE_SEED + index)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


class Form(NamedTuple):
    """One of the forms in which the data set is published: a folder, packed or not, of five batches to learn
    from and one to test with, 10,000 images each."""

    folder: str
    archive: str
    md5: dict[str, str]
    parse: Callable[[bytes], Images]


def _binary(content: bytes) -> Images:
    """Records of a byte for the label, 1,024 for red, 1,024 for green, 1,024 for blue, each row by row."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + CHANNELS * SIDE * SIDE)
    return _images(records[:, 1:], records[:, 0])


def _pickled(content: bytes) -> Images:
    """A pickled dictionary of the same arrays."""
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    return _images(batch[b"data"], np.asarray(batch[b"labels"]))


def _images(colours: np.ndarray, labels: np.ndarray) -> Images:
    pixels = colours.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1).copy()
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and plain values alone; a pickle that asks for anything else is refused, not executed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # the same function where this NumPy has it
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


FORMS = (
    Form(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        {
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        _binary,
    ),
    Form(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        _pickled,
    ),
)


@functools.lru_cache(maxsize=1)
def _load(folder: Path | None) -> Splits:
    if folder is None:
        path = files.download([URL], ARCHIVE_MD5, "cifar-10")
    else:
        places = [place for form in FORMS for place in (form.folder, form.archive)]
        path = files.find(folder, places, "CIFAR-10")
    form = next(form for form in FORMS if path.name in (form.folder, form.archive))
    if path.name == form.folder:
        contents = {name: files.read(path / name, md5) for name, md5 in form.md5.items()}
    else:
        contents = files.read_members(path, {f"{form.folder}/{name}": md5 for name, md5 in form.md5.items()})
    *known, test = (_parsed(form, path, name, content) for name, content in sorted(contents.items()))
    return split(Images(*(torch.cat(parts) for parts in zip(*known))), test)


def _parsed(form: Form, path: Path, name: str, content: bytes) -> Images:
    try:
        return form.parse(content)
    except Exception as error:  # a pickle that is none raises nearly anything
        raise UserError(f"{path}, {name}, is no batch of CIFAR-10: {error}") from error
