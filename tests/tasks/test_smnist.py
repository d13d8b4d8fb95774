"""Sequential MNIST from small files, and from the official ones where these are at hand."""

import gzip

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rims.errors import UserError
from rims.tasks import TASKS, SequentialMNIST, Tokens, smnist

from .helpers import idx, md5, mnist, write

NAMES = list(smnist.MD5)


@pytest.fixture
def arrays(monkeypatch):
    return mnist(monkeypatch)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RIMS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", "."])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_sequences_are_those_of_the_files(arrays, folder, place, ending):
    for name, array in arrays.items():
        write(folder / place / f"{name}{ending}", idx(array))
    task = SequentialMNIST()
    assert [task.size(split) for split in ("training", "validation", "test")] == [8, 2, 7]
    inputs, labels, _ = task.examples("test", torch.arange(7), 19)
    assert labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    images = torch.from_numpy(arrays["t10k-images-idx3-ubyte"])[:, None].double() / 255
    after = F.interpolate(images, size=19, mode="nearest").round()  # the paper's order: scale, binarise
    assert torch.equal(inputs, after.flatten(1).T.long())
    inputs, labels, _ = task.examples("training", torch.arange(8))
    assert inputs.shape == (196, 8)
    by_label = arrays["train-images-idx3-ubyte"][labels.numpy()][:, ::2, ::2] / 255
    assert (inputs.T.view(8, 14, 14).numpy() == by_label.round()).all()
    together = torch.cat([labels, task.examples("validation", torch.arange(2)).targets])
    assert sorted(together.tolist()) == list(range(10))


def test_half_white_rounds_as_one_rounds_it(arrays, folder):
    pixels = arrays["train-images-idx3-ubyte"]
    pixels[...] = np.arange(256, dtype=np.uint8)[np.arange(28 * 28) % 256].reshape(28, 28)
    smnist.MD5["train-images-idx3-ubyte"] = md5(idx(pixels))
    for name, array in arrays.items():
        write(folder / name, idx(array))
    black_and_white = SequentialMNIST().pixels("training", torch.tensor([0])).flatten()[:256]
    assert black_and_white.tolist() == [round(value / 255) for value in range(256)]


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_files_that_are_not_the_official_ones_are_named(arrays, folder, how, ending, name):
    for each, array in arrays.items():
        write(folder / f"{each}{ending}", idx(array))
    path = folder / f"{name}{ending}"
    if how == "missing":
        path.unlink()
        message = f"{folder} has no MNIST file {name}; looked for mnist/{name}, "
    else:
        path.write_bytes(damaged(path.read_bytes(), how))
        message = f"{path} is truncated or "
    with pytest.raises(UserError) as caught:
        SequentialMNIST().prepare()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_other_data_of_the_same_form_are_refused(arrays, folder):
    for name, array in arrays.items():
        write(folder / f"{name}.gz", idx(array ^ (name == NAMES[1])))
    path = folder / f"{NAMES[1]}.gz"
    content = gzip.decompress(path.read_bytes())
    with pytest.raises(UserError) as caught:
        SequentialMNIST().prepare()
    assert str(caught.value) == (
        f"{path} is truncated or altered: the MD5 of its 18 bytes is {md5(content)}, "
        f"that of the official file is {smnist.MD5[NAMES[1]]}"
    )


def test_the_official_files(official_data):
    task = SequentialMNIST()
    assert [task.size(split) for split in ("training", "validation", "test")] == [48_000, 12_000, 10_000]
    inputs, labels, _ = task.examples("test", torch.arange(10_000))
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as everyone knows them
    assert torch.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert inputs.shape == (196, 10_000)
    known = torch.cat([task.splits()[split].labels for split in ("training", "validation")])
    assert torch.bincount(known).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # The nearest of 1,000 training images, by differing pixels, shows the same digit far more often than not.
    seen, answers, _ = task.examples("training", torch.arange(1000))
    asked, wanted = inputs[:, :100].T.float(), labels[:100]
    nearest = torch.cdist(asked, seen.T.float(), p=1).argmin(1)
    assert (answers[nearest] == wanted).float().mean() > 0.7


def test_registered():
    task = TASKS["smnist"]()
    assert (task.input, task.output_size) == (Tokens(2), 10)
    assert (task.training_condition, task.test_conditions) == (14, (14, 16, 19, 24, 28))
