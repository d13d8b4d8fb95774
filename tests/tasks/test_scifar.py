"""Sequential CIFAR-10 from small files, and from what is at hand of the official ones."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rims.errors import UserError
from rims.tasks import TASKS, SequentialCIFAR, Tokens, files, scifar

from .helpers import md5, python_2_pickle, write

BINARY, PYTHON = scifar.FORMS
BATCH = 2
"""Images a batch, of which there are six."""


@pytest.fixture
def images():
    """[batch, image, channel, row, column] and [batch, image]."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (6, BATCH, 3, 32, 32), np.uint8), np.arange(12).reshape(6, BATCH) % 10


@pytest.fixture
def contents(images, monkeypatch):
    """The files of both forms by name, known by their checksums."""
    binary, python = {}, {}
    for pixels, labels, one, other in zip(*images, BINARY.md5, PYTHON.md5):
        binary[one] = b"".join(bytes([label]) + image.tobytes() for image, label in zip(pixels, labels))
        python[other] = python_2_pickle(pixels.reshape(BATCH, 3072), labels.tolist())
    forms = tuple(
        form._replace(md5={name: md5(content) for name, content in of.items()})
        for form, of in ((BINARY, binary), (PYTHON, python))
    )
    monkeypatch.setattr(scifar, "FORMS", forms)
    return {BINARY.folder: binary, PYTHON.folder: python}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RIMS_DATA", str(tmp_path))
    return tmp_path


def unpacked(folder, form, contents):
    for name, content in contents[form.folder].items():
        write(folder / form.folder / name, content)


def packed(folder, form, contents):
    unpacked(folder / "elsewhere", form, contents)
    with tarfile.open(folder / form.archive, "w:gz") as archive:
        archive.add(folder / "elsewhere" / form.folder, form.folder)


@pytest.mark.parametrize("form", [BINARY, PYTHON], ids=["binary", "python"])
@pytest.mark.parametrize("put", [unpacked, packed])
def test_sequences_are_those_of_the_files(images, contents, folder, form, put):
    put(folder, form, contents)
    task = SequentialCIFAR()
    assert [task.size(split) for split in ("training", "validation", "test")] == [8, 2, 2]
    inputs, labels, _ = task.examples("test", torch.arange(2), 24)
    assert labels.tolist() == images[1][5].tolist()
    scaled = F.interpolate(torch.from_numpy(images[0][5]).float(), size=24, mode="nearest")
    for row in range(24):
        for column in range(24):
            assert torch.equal(inputs[24 * row + column].float(), scaled[:, :, row, column])
    known = torch.from_numpy(images[0][:5].reshape(10, 3, 32, 32)[..., ::2, ::2]).flatten(2).permute(2, 0, 1)
    training, validation = (
        task.examples(split, torch.arange(task.size(split))) for split in ("training", "validation")
    )
    assert training.inputs.shape == (256, 8, 3)
    found = torch.cat([training.inputs, validation.inputs], 1)
    assert sorted(found[:, i].tolist() for i in range(10)) == sorted(known[:, i].tolist() for i in range(10))
    for sequence, label in zip(found.unbind(1), torch.cat([training.targets, validation.targets])):
        (index,) = (i for i in range(10) if torch.equal(known[:, i].long(), sequence))
        assert label == images[1].flatten()[index]


def test_test_noise_is_that_of_the_released_code(images, contents, folder):
    unpacked(folder, BINARY, contents)
    clean, noisy = SequentialCIFAR(), SequentialCIFAR(test_noise=1 / 32)
    both = torch.arange(2)
    for split in ("training", "validation"):
        assert torch.equal(clean.examples(split, both).inputs, noisy.examples(split, both).inputs)
    before, after = (task.examples("test", both, 32).inputs for task in (clean, noisy))
    inside = (before > 40) & (before < 215)
    moved = (after - before)[inside].double()
    assert moved.mean().abs() < 0.5
    assert moved.std() == pytest.approx(255 / 32, rel=0.05)
    assert (after.min(), after.max()) == (0, 255)
    # An image has its own noise, the same in any company and at any resolution.
    assert torch.equal(noisy.examples("test", both[1:], 32).inputs[:, 0], after[:, 1])
    image = after[:, 1].view(32, 32, 3)
    assert torch.equal(noisy.examples("test", both, 16).inputs[:, 1].view(16, 16, 3), image[::2, ::2])
    noise = (after - before).transpose(1, 2)[inside.all(1)].double()
    assert noise.T.corrcoef()[0, 1].abs() < 0.1
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(noisy.examples("test", both, 32).inputs, after)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("form", [BINARY, PYTHON], ids=["binary", "python"])
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("which", [2, 5])
def test_files_that_are_not_the_official_ones_are_named(contents, folder, form, how, which):
    unpacked(folder, form, contents)
    path = folder / form.folder / list(contents[form.folder])[which]
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-10] if how == "truncated" else content[:-10] + bytes(10))
    with pytest.raises(UserError) as caught:
        SequentialCIFAR().prepare()
    message = "missing" if how == "missing" else "truncated or altered: the MD5 of"
    assert str(caught.value).startswith(f"{path} is {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["truncated", "altered", "lacking", "empty"])
def test_archives_that_are_not_the_official_ones_are_named(contents, folder, how):
    if how == "altered":
        contents[BINARY.folder]["data_batch_3.bin"] = bytes(100)
    if how == "lacking":
        del contents[BINARY.folder]["data_batch_3.bin"]
    packed(folder, BINARY, contents)
    path = folder / BINARY.archive
    if how in ("truncated", "empty"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if how == "truncated" else 0])
    with pytest.raises(UserError) as caught:
        SequentialCIFAR().prepare()
    words = {
        "truncated": "is truncated or damaged: ",
        "empty": "is truncated or damaged: ",
        "altered": "member cifar-10-batches-bin/data_batch_3.bin, is truncated or altered: the MD5 of",
        "lacking": "has no member cifar-10-batches-bin/data_batch_3.bin",
    }
    assert str(path) in str(caught.value)
    assert words[how] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_at_all_says_what_was_looked_for(folder):
    with pytest.raises(UserError) as caught:
        SequentialCIFAR().prepare()
    assert str(caught.value) == (
        f"{folder} has no CIFAR-10; looked for cifar-10-batches-bin, cifar-10-binary.tar.gz, "
        "cifar-10-batches-py, cifar-10-python.tar.gz"
    )


class Malice:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Malice(), protocol=2), pickle.dumps({b"data": []}), pickle.dumps([]), b"", b"\x80\x02}"],
)
def test_a_pickle_runs_no_code(contents, folder, monkeypatch, content):
    """Even one whose checksum were right."""
    monkeypatch.chdir(folder)
    contents[PYTHON.folder]["data_batch_1"] = content
    scifar.FORMS[1].md5["data_batch_1"] = md5(content)
    unpacked(folder, PYTHON, contents)
    with pytest.raises(UserError, match=r"data_batch_1, is no batch of CIFAR-10: ") as caught:
        SequentialCIFAR().prepare()
    assert "\n" not in str(caught.value)
    assert not (folder / "owned").exists()


def test_official_batches(official_data):
    """As many of the six as there are."""
    found = [name for name in BINARY.md5 if (official_data / BINARY.folder / name).exists()]
    if not found:
        pytest.skip(f"{official_data} has no {BINARY.folder}")
    for name in found:
        batch = BINARY.parse(files.read(official_data / BINARY.folder / name, BINARY.md5[name]))
        assert batch.pixels.shape == (10_000, 32, 32, 3)
        assert batch.labels.bincount().min() > 900
        # Neighbours in an image are alike, which they are not when its layout is misread.
        pixels = batch.pixels[:100].double()
        near = (pixels[:, 1:] - pixels[:, :-1]).abs().mean() + (
            pixels[:, :, 1:] - pixels[:, :, :-1]
        ).abs().mean()
        assert near < 0.6 * (pixels[1:] - pixels[:-1]).abs().mean()
    if len(found) == 6:
        task = SequentialCIFAR()
        sizes = [task.size(split) for split in ("training", "validation", "test")]
        assert sizes == [40_000, 10_000, 10_000]


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_wrong_noise_is_named(noise):
    with pytest.raises(ValueError, match=f"test_noise is {noise}; expected at least 0"):
        SequentialCIFAR(test_noise=noise)


def test_registered():
    task = TASKS["scifar"]()
    assert (task.input, task.output_size) == (Tokens(256, channels=3), 10)
    assert (task.training_condition, task.test_conditions) == (16, (16, 19, 24, 32))
