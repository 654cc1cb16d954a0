"""Downloads that resume: an interrupted one stays as `<sha256>.<owner>.part` and is continued later."""

from __future__ import annotations

import difflib
import io
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

import requests
from tqdm import tqdm  # type: ignore[import-untyped]

from datamodules.contract.errors import InputError, reason_of, say
from datamodules.contract.files import sha256_of
from datamodules.sources.cache import cache_dir, is_abandoned, private_name
from datamodules.sources.kinds import PackageArchive, UrlFile, public_address, sha256_mismatch

PUBLIC_INDEX = "https://pypi.org/simple/"
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0)  # waits between attempts that brought no new byte
STALLED_SECONDS = 30.0  # without a new byte, after which no further attempt is made
LINE_SECONDS = 10.0  # between two lines about a download, where stderr is no terminal
_TIMEOUT = (10.0, 20.0)  # seconds to connect, seconds between two pieces of the answer
_CHUNK = 1 << 16  # bytes; small, because a broken connection loses up to one chunk
_T = TypeVar("_T")


@contextmanager
def downloaded(source: UrlFile | PackageArchive, remedy: str = "") -> Iterator[Path]:
    """Downloads a file, or what an interrupted download left to do, and lends it once its sum is right.

    After the block the file is gone; after a failure it is kept for the next attempt, unless its content is
    at fault.

    Args:
        source: what to download.
        remedy: what else the user can do where there is no network, as the start of a list.

    Raises:
        InputError: it cannot be downloaded or is not what its sum says.

    >>> import hashlib, tempfile
    >>> from unittest.mock import patch
    >>> digest = hashlib.sha256(b"196 242 3").hexdigest()
    >>> with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, INSTRUCTREC_CACHE=folder):
    ...     _ = Path(folder, f"{digest}.free.1.0.part").write_bytes(b"196 242 3")  # nothing is left to do
    ...     with downloaded(UrlFile("https://example.org/u.data", digest)) as part:
    ...         part.read_text()
    '196 242 3'
    """
    with _own_part(source.sha256) as part:
        try:
            _complete(part, source)
        except requests.RequestException as error:
            raise InputError(_unreachable(source, remedy, reason_of(error))) from error
        try:
            yield part
        except InputError:
            os.truncate(part, 0)  # its content is at fault, so it is not worth keeping
            raise


@contextmanager
def _own_part(sha256: str) -> Iterator[Path]:
    """A part file that no other process writes: the longest abandoned one, else an empty one.

    After success it is removed, with what other processes abandoned; after a failure it is left for the next
    attempt under no process's name.
    """
    mine = private_name(sha256, ".part")
    for left in sorted(cache_dir().glob(f"{sha256}.*.part"), key=_size, reverse=True):
        if is_abandoned(left):
            with suppress(OSError):  # another process was faster
                left.rename(mine)
                break
    mine.touch()  # new, or no longer old
    try:
        yield mine
    except BaseException:
        with suppress(OSError):  # the first error counts
            if _size(mine):
                mine.rename(private_name(sha256, ".part", owner="free"))
            else:
                mine.unlink()
        raise
    mine.unlink(missing_ok=True)
    for left in cache_dir().glob(f"{sha256}.*.part"):
        if is_abandoned(left):
            left.unlink(missing_ok=True)


def _complete(part: Path, source: UrlFile | PackageArchive) -> None:
    """Downloads what a part file lacks; one that was damaged on the way gets a second, fresh start."""
    resumed = part.stat().st_size > 0
    if resumed and sha256_of(part) == source.sha256:
        return
    with requests.Session() as http:
        http.verify = os.environ.get("PIP_CERT") or True
        url = source.url if isinstance(source, UrlFile) else _index_address(source, http)

        def download() -> str:
            _retry(lambda: _stream(part, url, source.filename, http), lambda: _size(part))
            return sha256_of(part)

        actual = download()
        if actual != source.sha256 and resumed:
            say(f"{source.filename} is wrong after resuming; downloading it from the start")
            os.truncate(part, 0)
            actual = download()
    if actual != source.sha256:
        os.truncate(part, 0)
        raise sha256_mismatch(f"{source.filename} from {public_address(url)}", source.sha256, actual)


def _stream(part: Path, url: str, title: str, http: requests.Session) -> None:
    """One request for the rest of a file; what arrives before an error stays in the part file."""
    offset = part.stat().st_size
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with http.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if offset and (response.status_code == 416 or (response.status_code == 206 and not continues)):
            os.truncate(part, 0)  # the server has no such range, so the part is of something else
            return _stream(part, url, title, http)
        response.raise_for_status()
        done = offset if response.status_code == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        with part.open("ab" if done else "wb") as out, _progress(title, done, total) as progress:
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                progress.update(len(chunk))
            out.flush()
            os.fsync(out.fileno())
    if total is not None and done < total:  # urllib3 1 ends quietly here
        raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")
    return None


def _retry(action: Callable[[], _T], progress: Callable[[], int] = lambda: 0) -> _T:
    """Repeats an action after passing network errors, until several attempts in a row made no progress, or it is late."""
    furthest, failures, since = progress(), 0, time.monotonic()
    while True:
        try:
            return action()
        except requests.RequestException as error:
            if progress() > furthest:
                furthest, failures, since = progress(), 0, time.monotonic()
            late = time.monotonic() - since > STALLED_SECONDS
            if failures == len(BACKOFF_SECONDS) or late or not _passing(error):
                raise
            time.sleep(BACKOFF_SECONDS[failures])
            failures += 1


def _passing(error: requests.RequestException) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in {408, 429, 500, 502, 503, 504}
    if isinstance(error, requests.exceptions.SSLError):
        return False
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing)


def _progress(title: str, done: int, total: int | None) -> Any:
    """Bytes, rate and time left on stderr: a bar on a terminal, which goes when it is done, else a line every 10 s."""
    live = sys.stderr.isatty()
    line = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left" if total else "{desc}: {n_fmt}, {rate_fmt}"
    return tqdm(
        desc=title,
        initial=done,
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr if live else _Lines(),
        leave=not live,
        mininterval=0.2 if live else LINE_SECONDS,
        maxinterval=math.inf,
        delay=0 if live else LINE_SECONDS,
        bar_format=None if live else line,
    )


class _Lines(io.StringIO):
    """Takes what is meant to overwrite a terminal's line, and prints it as a line."""

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr, flush=True)
        return len(text)


def _index() -> str:
    """Address of the package index, as pip and uv would choose it."""
    for variable in ("PIP_INDEX_URL", "UV_INDEX_URL"):
        if address := os.environ.get(variable):
            return address
    # Not `pip config get`: it reads one file, whereas the list merges the machine's and the user's.
    command = [sys.executable, "-m", "pip", "config", "list"]
    with suppress(OSError, subprocess.TimeoutExpired):  # an environment without pip has no such settings
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if setting := re.search(r"^global\.index-url='(.+)'$", answer.stdout, flags=re.MULTILINE):
            return setting[1]
    return PUBLIC_INDEX


def _index_address(source: PackageArchive, http: requests.Session) -> str:
    """Asks the index where an archive is (PEP 691, the JSON form of the simple index)."""
    page = f"{_index().rstrip('/')}/{re.sub(r'[-_.]+', '-', source.package).lower()}/"
    headers = {"Accept": "application/vnd.pypi.simple.v1+json"}

    def ask() -> requests.Response:
        response = http.get(page, headers=headers, timeout=_TIMEOUT)
        response.raise_for_status()
        return response

    response = _retry(ask)
    try:
        files = response.json()["files"]
        offered = {str(f["filename"]): (str(f["url"]), f.get("hashes", {}).get("sha256")) for f in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{public_address(page)} is not a page of a package index in JSON (PEP 691)") from error
    if source.filename not in offered:
        near = difflib.get_close_matches(source.filename, offered, n=1, cutoff=0.0)
        hint = f"; the nearest there is {near[0]}" if near else ""
        raise InputError(f"{public_address(page)} has no file {source.filename}{hint}")
    url, advertised = offered[source.filename]
    if advertised and advertised != source.sha256:
        raise sha256_mismatch(f"{source.filename} as advertised by {public_address(page)}", source.sha256, advertised)
    return urljoin(response.url, url)


def _unreachable(source: UrlFile | PackageArchive, remedy: str, reason: str) -> str:
    index = f" from {public_address(_index())}" if isinstance(source, PackageArchive) else ""
    kept = max(map(_size, cache_dir().glob(f"{source.sha256}.*.part")), default=0)
    resumes = f" (it resumes at {kept} bytes)" if kept else ""
    return (
        f"cannot download {source}{index}: {reason}; {remedy}put {source.filename} at "
        f"{cache_dir() / source.filename}, or run again where there is a network{resumes}"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
