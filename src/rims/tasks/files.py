"""Official data files: found in a folder that the user names, or downloaded, and never used unverified.

Where data lie is a property of the machine and not of the experiment, so it is no option of a task: a run is
the same run, and is tested, on a machine that keeps its data elsewhere.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http
import http.client
import os
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rims.errors import UserError

ENVIRONMENT = "RIMS_DATA"

CHUNK = 1 << 16
ATTEMPTS = 3
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0


def data_dir() -> Path | None:
    """The folder in which the user keeps data: the environment variable RIMS_DATA, which ``--data-dir`` sets.

    ``None`` when there is none: then files are downloaded into the user's cache folder. A named folder is
    never written to, and what it lacks is not looked for elsewhere. Raises UserError when it is no folder.
    """
    named = os.environ.get(ENVIRONMENT)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist (--data-dir, or {ENVIRONMENT})")
    return folder


def find(folder: Path, names: Sequence[str], what: str) -> Path:
    """The first of ``names`` that is in ``folder``. Raises UserError naming ``what`` is missing."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has no {what}; looked for {', '.join(names)}")


def read(path: Path, md5: str) -> bytes:
    """The content of a file, decompressed when its name ends in .gz.

    ``md5`` is that of the content. It tells damage, not malice: what reads the content must not trust it.
    Raises UserError naming the file when it is missing, truncated or altered.
    """
    with _damage(path):
        content = path.read_bytes()
        return _verified(gzip.decompress(content) if path.suffix == ".gz" else content, md5, str(path))


def read_members(archive: Path, md5: dict[str, str]) -> dict[str, bytes]:
    """The contents of those members of a .tar.gz file that ``md5`` names, with their MD5; as :func:`read`.

    In one pass: the way to a member leads through all that stand before it. Nothing is unpacked to the disk.
    """
    contents = {}
    with _damage(archive), tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            if entry.name in md5 and (file := tar.extractfile(entry)):
                name = f"{archive}, member {entry.name},"
                contents[entry.name] = _verified(file.read(), md5[entry.name], name)
    for missing in sorted(md5.keys() - contents.keys()):
        raise UserError(f"{archive} has no member {missing}")
    return contents


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What reading a file may raise, as a UserError that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from error
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _verified(content: bytes, md5: str, name: str) -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{name} is truncated or altered: the MD5 of its {len(content):,} bytes is {found}, "
            f"that of the official file is {md5}"
        )
    return content


def download(urls: Sequence[str], md5: str, dataset: str) -> Path:
    """The file in the user's cache folder; downloaded from the first of ``urls`` that gives it, unless it is
    there and whole.

    What arrived before a connection broke is kept, and the next attempt, or the next start, goes on from it.
    Raises UserError when the file cannot be had.
    """
    try:
        import filelock
        import pooch
    except ModuleNotFoundError as missing:
        raise UserError(f"downloading needs {missing.name}: pip install 'rims[train]'") from missing
    pooch.get_logger().setLevel("WARNING")
    cache = Path(pooch.os_cache("rims")) / dataset
    name = urls[0].rpartition("/")[2]
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS * attempt)
        for url in urls:
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with filelock.FileLock(cache / f"{name}.lock"):  # several runs may start at once
                    return Path(pooch.retrieve(url, f"md5:{md5}", name, cache, downloader=_resume))
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = error
    raise UserError(
        f"cannot download {name} to {cache}: {' '.join(str(failure).split())} "
        f"(a folder that holds it can be named by --data-dir or {ENVIRONMENT})"
    )


def _resume(url: str, output_file: Any, pooch: Any) -> None:
    """Pooch's downloader, but one that goes on from what an earlier attempt has left."""
    partial = Path(output_file).parent / f"{url.rpartition('/')[2]}.part"
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink(missing_ok=True)  # more than the file has: begin again at the next attempt
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        with _progress(partial, start, total) as advance, open(partial, "r+b" if start else "wb") as file:
            file.seek(start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                advance(len(chunk))
    size = partial.stat().st_size
    if total and size < total:
        raise OSError(f"{url} broke off after {size:,} of {total:,} bytes")
    os.replace(partial, output_file)


@contextlib.contextmanager
def _progress(partial: Path, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr, and one line elsewhere. Yields what is to be told of each chunk."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        size = f" ({total / 1e6:.1f} MB)" if total else ""
        print(f"downloading {partial.stem}{size} to {partial.parent}", file=sys.stderr)
        yield lambda size: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(partial.stem, total=total, completed=start)
        yield lambda size: bar.advance(task, size)
