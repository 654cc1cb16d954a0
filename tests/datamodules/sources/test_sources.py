"""Sources against a package index on this machine that can be told to misbehave."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.contract.errors import InputError
from datamodules.sources import downloads
from datamodules.sources.fetch import fetch, locate
from datamodules.sources.kinds import HubSnapshot, LocalFile, PackageArchive, UrlFile

ROOT = Path(downloads.__file__).parents[2]
RATINGS = random.Random(0).randbytes(600_000)  # incompressible, so the wheel is as long
ITEMS = b"item_id:token\ttitle:token_seq\n1\tToy Story\n"
WHEEL = "toy_data-1.0-py3-none-any.whl"


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bag:
        for name, content in members.items():
            bag.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENT = zipped({"toy/data/u.inter": RATINGS, "toy/data/u.item": ITEMS, "toy/__init__.py": b"raise SystemExit"})
TOY = PackageArchive("Toy.Data", "1.0", WHEEL, digest(CONTENT), members=("toy/data/u.*",))


class Index(ThreadingHTTPServer):
    """A simple index with one package, `toy-data`, and switches for what may go wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.content = CONTENT
        self.advertised = digest(CONTENT)
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.cuts: list[int] = []  # bytes after which the next file answers are cut off
        self.statuses: list[int] = []  # statuses of the next file answers
        self.ranges = True
        self.stall: threading.Event | None = None  # the cut answers wait for it before they close

    @property
    def file_requests(self) -> list[str | None]:
        return [span for path, span in self.requests if path == f"/files/{WHEEL}"]


class Handler(BaseHTTPRequestHandler):
    server: Index

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        index, span = self.server, self.headers.get("Range")
        index.requests.append((self.path, span))
        if self.path == "/simple/toy-data/":
            # The address is relative, as PEP 691 allows.
            file = {"filename": WHEEL, "url": f"../../files/{WHEEL}", "hashes": {"sha256": index.advertised}}
            page = json.dumps({"meta": {"api-version": "1.0"}, "name": "toy-data", "files": [file]})
            self.answer(200, page.encode(), {"Content-Type": "application/vnd.pypi.simple.v1+json"})
        elif self.path != f"/files/{WHEEL}":
            self.answer(404, b"")
        elif index.statuses:
            self.answer(index.statuses.pop(0), b"")
        elif span and index.ranges:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            size = len(index.content)
            if start >= size:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            else:
                self.answer(206, index.content[start:], {"Content-Range": f"bytes {start}-{size - 1}/{size}"})
        else:
            self.answer(200, index.content)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts and status in (200, 206) and len(body) > 1000 else None
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if cut is not None and self.server.stall is not None:
            self.server.stall.wait(30)


@pytest.fixture
def index() -> Iterator[Index]:
    server = Index()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    if server.stall:
        server.stall.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("INSTRUCTREC_DATA", "UV_INDEX_URL", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "BACKOFF_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(downloads, "PUBLIC_INDEX", "http://127.0.0.1:9/simple")  # no test reaches the network
    return tmp_path / "cache"


@pytest.fixture
def toy(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}/simple/")
    return index


def offline(monkeypatch: pytest.MonkeyPatch) -> str:
    """Points the index at a port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    return address


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix in (".part", ".tmp"))


def assert_is_toy(folder: Path) -> None:
    assert sorted(path.name for path in folder.rglob("*")) == ["u.inter", "u.item"]
    assert (folder / "u.inter").read_bytes() == RATINGS
    assert (folder / "u.item").read_bytes() == ITEMS


def start(code: str) -> subprocess.Popen[str]:
    """Runs code in a process of its own."""
    lines = (
        "import sys",
        f"sys.path.append({str(ROOT)!r})",
        "from datamodules.contract.errors import InputError",
        "from datamodules.sources.fetch import fetch",
        "from datamodules.sources.kinds import PackageArchive",
        f"TOY = {TOY!r}",
        code,
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# ---- the good way ------------------------------------------------------------------------------------------


def test_package_members_are_unpacked_and_the_second_fetch_asks_nobody(toy: Index, cache: Path) -> None:
    folder = fetch(TOY)
    assert_is_toy(folder)
    assert folder.is_relative_to(cache)
    assert leftovers(cache) == []
    assert [path for path, _ in toy.requests] == ["/simple/toy-data/", f"/files/{WHEEL}"]
    assert fetch(TOY) == folder
    assert len(toy.requests) == 2


def test_address_without_members_gives_the_file_itself(index: Index, cache: Path) -> None:
    source = UrlFile(f"{index.address}/files/{WHEEL}?download=1", digest(CONTENT))
    index.requests.clear()
    with pytest.raises(InputError, match="HTTP 404"):
        fetch(source)  # the query is sent
    path = fetch(UrlFile(f"{index.address}/files/{WHEEL}", digest(CONTENT)))
    assert path.name == WHEEL
    assert path.read_bytes() == CONTENT


def test_address_with_members_gives_a_folder(index: Index, cache: Path) -> None:
    url = f"{index.address}/files/{WHEEL}"
    folder = fetch(UrlFile(url, digest(CONTENT), members=("toy/data/*", "toy/__init__.py")))
    # The folder common to all, toy/, is dropped.
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "__init__.py", "data/u.inter", "data/u.item",
    }  # fmt: skip


def test_local_file_is_checked_and_unpacked(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    path.write_bytes(CONTENT)
    assert fetch(LocalFile(path)) == path
    assert_is_toy(fetch(LocalFile(path, digest(CONTENT), members=("toy/data/*",))))
    with pytest.raises(InputError, match=f"{WHEEL}.*expected {'0' * 64}, actual {digest(CONTENT)}"):
        fetch(LocalFile(path, "0" * 64))
    with pytest.raises(InputError, match=r"no file at .*absent\.zip"):
        fetch(LocalFile(tmp_path / "absent.zip"))


def test_uv_index_is_used_where_pip_has_none(toy: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_URL", os.environ["PIP_INDEX_URL"])
    monkeypatch.delenv("PIP_INDEX_URL")
    assert_is_toy(fetch(TOY))


def test_index_comes_from_pips_own_settings_last(toy: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_file = tmp_path / "pip.conf"
    settings_file.write_text(f"[global]\nindex-url = {os.environ['PIP_INDEX_URL']}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings_file))
    monkeypatch.delenv("PIP_INDEX_URL")
    assert_is_toy(fetch(TOY))


# ---- interrupted downloads ---------------------------------------------------------------------------------


def test_cut_connection_is_continued_where_it_ended(toy: Index, cache: Path) -> None:
    toy.cuts = [200_000, 200_000]
    assert_is_toy(fetch(TOY))
    first, *others = toy.file_requests
    assert first is None
    starts = [int(str(span).removeprefix("bytes=").removesuffix("-")) for span in others]
    assert len(starts) == 2
    assert 0 < starts[0] <= 200_000 < starts[1] <= 400_000
    assert leftovers(cache) == []


def test_server_that_ignores_range_is_read_from_the_start(toy: Index) -> None:
    toy.ranges, toy.cuts = False, [300_000]
    assert_is_toy(fetch(TOY))
    assert len(toy.file_requests) == 2
    assert toy.file_requests[1] is not None


def test_busy_server_is_asked_again(toy: Index) -> None:
    toy.statuses = [503, 429]
    assert_is_toy(fetch(TOY))
    assert len(toy.file_requests) == 3


def test_failed_fetch_says_where_it_resumes_and_a_later_one_does(toy: Index, cache: Path) -> None:
    toy.ranges = False
    toy.cuts = [200_000] * 4  # the first and three attempts that come no further
    with pytest.raises(InputError) as failure:
        fetch(TOY)
    (part,) = cache.glob("*.part")
    assert f"resumes at {part.stat().st_size} bytes" in str(failure.value)
    assert part.read_bytes() == CONTENT[: part.stat().st_size] != b""
    toy.ranges = True
    toy.requests.clear()
    kept = part.stat().st_size
    assert_is_toy(fetch(TOY))
    assert toy.file_requests == [f"bytes={kept}-"]
    assert leftovers(cache) == []


@pytest.mark.parametrize("part", [b"not the beginning", CONTENT[:1000] + b"x" + CONTENT[1001:], CONTENT + b"more"])
def test_damaged_partial_file_costs_one_fresh_download(toy: Index, cache: Path, part: bytes) -> None:
    cache.mkdir()
    (cache / f"{TOY.sha256}.free.1.aa.part").write_bytes(part)
    assert_is_toy(fetch(TOY))
    assert len(toy.file_requests) == 2
    assert leftovers(cache) == []


def test_complete_partial_file_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    cache.mkdir()
    (cache / f"{TOY.sha256}.free.1.aa.part").write_bytes(CONTENT)
    assert_is_toy(fetch(TOY))


def test_part_of_a_live_process_is_left_alone_and_of_a_killed_one_continued(toy: Index, cache: Path) -> None:
    toy.cuts, toy.stall = [300_000], threading.Event()
    with start("fetch(TOY)") as child:
        while not (parts := list(cache.glob("*.part"))) or parts[0].stat().st_size < 100_000:
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        (part,) = parts
        assert_is_toy(fetch(TOY))
        assert toy.file_requests == [None, None]
        assert part.exists()
        child.send_signal(signal.SIGKILL)
        child.communicate()
    kept = part.stat().st_size
    for entry in cache.glob("*.whl-*"):
        (entry / "manifest.json").unlink()
    assert_is_toy(fetch(TOY))
    assert toy.file_requests[2:] == [f"bytes={kept}-"]
    assert leftovers(cache) == []


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=6), ranges=st.booleans())
def test_any_cuts_give_the_right_bytes_or_an_error(cuts: list[int], ranges: bool) -> None:
    server = Index()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.cuts, server.ranges = list(cuts), ranges
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTRUCTREC_CACHE", folder)
        patch.setenv("NO_PROXY", "*")
        patch.setattr(downloads, "BACKOFF_SECONDS", (0.0, 0.0, 0.0))
        try:
            path = fetch(UrlFile(f"{server.address}/files/{WHEEL}", digest(CONTENT)))
        except InputError:
            assert len(server.file_requests) >= 4  # it did try
            path = fetch(UrlFile(f"{server.address}/files/{WHEEL}", digest(CONTENT)))
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        assert path.read_bytes() == CONTENT
        assert leftovers(Path(folder)) == []


# ---- wrong content -----------------------------------------------------------------------------------------


def test_wrong_content_names_file_expected_and_actual_and_keeps_nothing(toy: Index, cache: Path) -> None:
    toy.content = CONTENT[:-1] + b"!"
    with pytest.raises(InputError) as failure:
        fetch(TOY)
    for part in (WHEEL, f"expected {TOY.sha256}", f"actual {digest(toy.content)}"):
        assert part in str(failure.value)
    assert "\n" not in str(failure.value)
    assert list(cache.iterdir()) == []
    assert len(toy.file_requests) == 1


def test_index_that_advertises_another_sum_is_not_downloaded_from(toy: Index) -> None:
    toy.advertised = "a" * 64
    with pytest.raises(InputError, match=f"advertised.*expected {TOY.sha256}, actual {'a' * 64}"):
        fetch(TOY)
    assert toy.file_requests == []


def test_unknown_file_names_the_nearest(toy: Index) -> None:
    source = PackageArchive("toy-data", "2.0", WHEEL.replace("1.0", "2.0"), TOY.sha256, ("*",))
    with pytest.raises(InputError, match=f"has no file toy_data-2.0.*nearest there is {WHEEL}"):
        fetch(source)


def test_unknown_package_is_not_asked_for_again(toy: Index) -> None:
    with pytest.raises(InputError, match=r"cannot download x\.whl of package nobody 1.*HTTP 404"):
        fetch(PackageArchive("nobody", "1", "x.whl", TOY.sha256))
    assert len(toy.requests) == 1


def test_page_that_is_no_index_is_said_so(index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.content = b"<html>Please log in</html>"
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.address}/simple")
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(200, b"<html>"))
    with pytest.raises(InputError, match=r"simple/toy-data/ is not a page of a package index"):
        fetch(TOY)


@pytest.mark.parametrize("how", ["flip", "truncate", "delete", "manifest", "no manifest"])
def test_damage_in_the_cache_is_found_said_and_repaired(
    toy: Index, cache: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder = fetch(TOY)
    victim = folder / "u.inter" if how in ("flip", "truncate", "delete") else folder.parent / "manifest.json"
    content = bytearray(victim.read_bytes())
    if how in ("delete", "no manifest"):
        victim.unlink()
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content if how == "flip" else content[: len(content) // 2])
    capsys.readouterr()
    assert fetch(TOY) == folder
    assert_is_toy(folder)
    assert str(victim) in capsys.readouterr().err
    assert len(toy.file_requests) == 2
    assert len(list(cache.iterdir())) == 1


def test_manifest_of_another_content_is_not_believed(index: Index, cache: Path) -> None:
    source = UrlFile(f"{index.address}/files/{WHEEL}", digest(CONTENT))
    path = fetch(source)
    path.write_bytes(b"forged")
    record = {"files": {WHEEL: {"bytes": 6, "sha256": digest(b"forged")}}}
    (path.parents[1] / "manifest.json").write_text(json.dumps(record))
    assert fetch(source).read_bytes() == CONTENT


def test_damage_without_network_is_an_error_not_wrong_data(toy: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(TOY)
    (folder / "u.item").write_bytes(ITEMS.replace(b"Toy", b"Boy"))
    offline(monkeypatch)
    with pytest.raises(InputError, match="cannot download"):
        fetch(TOY)


# ---- network absent, own data, full disk -------------------------------------------------------------------


def test_absent_network_says_what_and_both_remedies_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = offline(monkeypatch)
    with pytest.raises(InputError) as failure:
        locate("toy", TOY, ("u.inter", "u.item"))
    message = str(failure.value)
    for part in (
        f"{WHEEL} of package Toy.Data 1.0 from {address}/simple: Connection refused",
        "put u.inter, u.item in $INSTRUCTREC_DATA/toy",
        f"put {WHEEL} at {cache / WHEEL}",
        "run again where there is a network",
    ):
        assert part in message
    assert "\n" not in message
    assert leftovers(cache) == []


def test_password_of_the_index_is_not_printed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = offline(monkeypatch).removeprefix("http://")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:hunter2@{address}/simple")
    with pytest.raises(InputError) as failure:
        fetch(TOY)
    assert address in str(failure.value)
    assert "hunter2" not in str(failure.value)


def test_archive_placed_by_hand_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    cache.mkdir()
    (cache / WHEEL).write_bytes(CONTENT)
    assert_is_toy(fetch(TOY))
    assert (cache / WHEEL).read_bytes() == CONTENT


def test_wrong_archive_placed_by_hand_is_refused_and_kept(toy: Index, cache: Path) -> None:
    cache.mkdir()
    (cache / WHEEL).write_bytes(b"something else")
    with pytest.raises(InputError, match=f"{WHEEL}: expected {TOY.sha256}, actual {digest(b'something else')}"):
        fetch(TOY)
    assert (cache / WHEEL).exists()


def test_own_data_come_before_the_source(toy: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own" / "toy"
    own.mkdir(parents=True)
    (own / "u.inter").write_text("mine")
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path / "own"))
    assert locate("toy", TOY, ("u.inter",)) == own
    assert toy.requests == []


def test_incomplete_own_data_are_not_used_and_that_is_said(
    toy: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own" / "toy").mkdir(parents=True)
    (tmp_path / "own" / "toy" / "u.inter").write_text("mine")
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path / "own"))
    assert_is_toy(locate("toy", TOY, ("u.inter", "u.item")))
    assert "lacks u.item" in capsys.readouterr().err


def test_file_source_is_located_by_its_folder(index: Index, cache: Path) -> None:
    source = UrlFile(f"{index.address}/files/{WHEEL}", digest(CONTENT))
    assert (locate("toy", source, (WHEEL,)) / WHEEL).read_bytes() == CONTENT


def test_source_that_lacks_a_needed_file_is_an_error(toy: Index) -> None:
    with pytest.raises(InputError, match=r"holds no u\.kg for toy; it holds u\.inter, u\.item"):
        locate("toy", TOY, ("u.inter", "u.kg"))


def test_data_without_a_source_say_what_to_put_where(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"put a\.csv, b\.csv in \$INSTRUCTREC_DATA/books"):
        locate("books", None, ("a.csv", "b.csv"))
    monkeypatch.setenv("INSTRUCTREC_DATA", str(tmp_path))
    with pytest.raises(InputError, match=f"put a.csv in {tmp_path / 'books'}"):
        locate("books", None, ("a.csv",))


def test_own_data_folder_that_is_not_there_is_an_error(toy: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTREC_DATA", "/no/such/folder")
    with pytest.raises(InputError, match="INSTRUCTREC_DATA=/no/such/folder is not a folder"):
        locate("toy", TOY, ("u.inter",))
    assert toy.requests == []


def test_full_disk_is_an_input_error_and_good_files_stay(toy: Index, cache: Path) -> None:
    small = UrlFile(f"{toy.address}/files/{WHEEL}", TOY.sha256, members=("toy/data/u.item",))
    good = fetch(small)
    # The operating system itself refuses to write beyond 200 kB in this process.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: fetch(TOY)\nexcept InputError as error: print(error)"
    )
    with start(code) as child:
        out, err = child.communicate()
    assert err == ""
    assert f"cannot keep {WHEEL}" in out
    assert "File too large; make room there or set INSTRUCTREC_CACHE" in out
    toy.requests.clear()
    assert fetch(small) == good
    assert toy.requests == []
    assert_is_toy(fetch(TOY))
    assert [span is not None for span in toy.file_requests] == [True]  # resumed


def test_cache_that_cannot_be_made_is_an_input_error(
    toy: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot keep .*set INSTRUCTREC_CACHE"):
        fetch(TOY)


# ---- progress ----------------------------------------------------------------------------------------------


def test_a_slow_download_says_how_far_it_is(
    toy: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(UrlFile(f"{toy.address}/files/{WHEEL}", TOY.sha256))
    assert capsys.readouterr().err == ""  # it was quick
    monkeypatch.setattr(downloads, "LINE_SECONDS", 0.0)
    fetch(TOY)
    told = capsys.readouterr().err
    assert all(re.fullmatch(rf"{WHEEL}: [\d.]+k?M? of [\d.]+k, .+B/s, .+ left", line) for line in told.splitlines())
    assert len(told.splitlines()) > 1
    assert "\r" not in told


def test_a_terminal_sees_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with downloads._progress("u.data", 100, 1000) as progress:
        progress.update(400)
        progress.refresh()
    assert re.search(r"\ru\.data:  50%\|.*\| 500/1.00k", terminal.getvalue())
    assert terminal.getvalue().endswith("\r")
    assert "\n" not in terminal.getvalue()


# ---- several processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [False, True])
def test_eight_processes_on_one_cache_agree_without_locks(toy: Index, cache: Path, damaged: bool) -> None:
    if damaged:
        (fetch(TOY) / "u.item").write_bytes(b"damaged")
    without_locks = "import fcntl; fcntl.flock = fcntl.lockf = lambda *a: None"  # as some file systems do
    children = [start(f"{without_locks}\nprint(fetch(TOY))") for _ in range(8)]
    results = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * 8, results
    (folder,) = {out.strip() for out, _ in results}
    assert_is_toy(Path(folder))
    assert list(cache.iterdir()) == [Path(folder).parent]


def test_slower_process_keeps_the_folder_that_the_faster_one_placed(toy: Index, cache: Path) -> None:
    toy.cuts, toy.stall = [300_000], threading.Event()
    with start("print(fetch(TOY))") as child:
        while not list(cache.glob("*.part")):
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        folder = fetch(TOY)
        placed = folder.stat().st_ino
        toy.stall.set()
        out, err = child.communicate()
    assert (out.strip(), err) == (str(folder), "")
    assert folder.stat().st_ino == placed  # a reader of the first never sees it go
    assert leftovers(cache) == []


# ---- unpacking ---------------------------------------------------------------------------------------------


def tarred(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    out = io.BytesIO()
    info.size = len(content)
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("good.txt"))
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a/link")
    info.type, info.linkname = kind, target
    return info


def zipped_link() -> bytes:
    out, info = io.BytesIO(), zipfile.ZipInfo("a/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(out, "w") as bag:
        bag.writestr("good.txt", "")
        bag.writestr(info, "../../../escaped")
    return out.getvalue()


ATTACKS = {
    "zip absolute": zipped({"good.txt": b"", "/no-such-folder/escaped": b"x"}),
    "zip parent": zipped({"good.txt": b"", "a/../../../escaped": b"x"}),
    "zip backslash": zipped({"good.txt": b"", "..\\escaped": b"x"}),
    "zip drive": zipped({"good.txt": b"", "C:escaped": b"x"}),
    "zip link": zipped_link(),
    "tar absolute": tarred(tarfile.TarInfo("/no-such-folder/escaped"), b"x"),
    "tar parent": tarred(tarfile.TarInfo("../escaped"), b"x"),
    "tar symlink": tarred(link(tarfile.SYMTYPE, "../escaped")),
    "tar hard link": tarred(link(tarfile.LNKTYPE, "good.txt")),
    "tar device": tarred(link(tarfile.CHRTYPE, "")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_archive_that_would_escape_is_refused_and_writes_nothing(cache: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "archive"
    path.write_bytes(ATTACKS[name])
    with pytest.raises(InputError, match="is refused: its member"):
        fetch(LocalFile(path, members=("*",)))
    assert list(cache.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["archive", "cache"]


def test_refused_download_is_not_kept(toy: Index, cache: Path) -> None:
    toy.content = ATTACKS["zip parent"]
    with pytest.raises(InputError, match="is refused"):
        fetch(UrlFile(f"{toy.address}/files/{WHEEL}", digest(toy.content), members=("good.txt",)))
    assert list(cache.iterdir()) == []


def test_member_over_the_limit_is_refused(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(zipped({"zeros": bytes(1001)}))
    assert fetch(LocalFile(path, members=("zeros",), max_member_bytes=1001)).is_dir()
    with pytest.raises(InputError, match="'zeros' has 1001 bytes, the limit is 1000"):
        fetch(LocalFile(path, members=("z*",), max_member_bytes=1000))


def test_member_that_stands_twice_is_refused(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(tarred(tarfile.TarInfo("./good.txt"), b"the other"))
    with pytest.raises(InputError, match=r"'\./good\.txt' stands twice"):
        fetch(LocalFile(path, members=("good.txt",)))


def test_pattern_without_a_member_names_the_nearest(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    path.write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"has no member toy/data/u\.itme; the nearest is toy/data/u\.item"):
        fetch(LocalFile(path, members=("toy/data/u.inter", "toy/data/u.itme")))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("content", [b"plain text", b"", CONTENT[: len(CONTENT) // 2], zipped({})])
def test_what_is_no_archive_cannot_be_unpacked(cache: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"archive\.zip (is neither|cannot be unpacked|has no member)"):
        fetch(LocalFile(path, members=("*",)))


@pytest.mark.parametrize("position", [30 + len("toy/data/u.inter"), len(CONTENT) // 2])
def test_archive_with_a_broken_member_cannot_be_unpacked(cache: Path, tmp_path: Path, position: int) -> None:
    path = tmp_path / "archive.zip"
    content = bytearray(CONTENT)
    content[position] = 0xFF  # at the first position not even a deflate stream, at the second a wrong checksum
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"archive\.zip cannot be unpacked"):
        fetch(LocalFile(path, members=("toy/data/*",)))
    assert list(cache.iterdir()) == []


part = st.text("abc", min_size=1, max_size=3)
trees = st.dictionaries(st.lists(part, min_size=1, max_size=3).map(tuple), st.binary(max_size=50), min_size=1)


@settings(max_examples=40, deadline=None)
@given(tree=trees, as_tar=st.booleans())
def test_unpacked_tree_equals_the_packed_one_below_its_common_folder(
    tree: dict[tuple[str, ...], bytes], as_tar: bool
) -> None:
    files = {("root", *key, "f"): content for key, content in tree.items()}  # "f" ends no folder name
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTRUCTREC_CACHE", f"{temporary}/cache")
        archive = Path(temporary, "archive")
        if as_tar:
            with tarfile.open(archive, "w") as tar:
                for key, content in files.items():
                    info = tarfile.TarInfo("./" + "/".join(key))
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        else:
            archive.write_bytes(zipped({"/".join(key): content for key, content in files.items()}))
        folder = fetch(LocalFile(archive, members=("root/*",)))
        unpacked = {p.relative_to(folder).parts: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        common = 0
        while len({key[: common + 1] for key in files}) == 1 and all(len(key) > common + 1 for key in files):
            common += 1
        assert unpacked == {key[common:]: content for key, content in files.items()}


# ---- descriptions and the hub ------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", ["", "abc", "A" * 64, "0" * 65, "sha256:" + "0" * 64])
def test_description_with_an_impossible_sum_is_refused(sha256: str) -> None:
    with pytest.raises(InputError, match="64 lower-case hex digits"):
        UrlFile("https://example.org/u.data", sha256)
    with pytest.raises(InputError, match="64 lower-case hex digits"):
        PackageArchive("toy-data", "1.0", WHEEL, sha256)


def test_description_that_names_no_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"example\.org/ ends in no file name"):
        UrlFile("https://example.org/", "0" * 64)
    with pytest.raises(InputError, match="not the file name of a package archive"):
        PackageArchive("toy-data", "1.0", "../evil.whl", "0" * 64)


def hub_answers(monkeypatch: pytest.MonkeyPatch, *answers: Path | Exception) -> list[dict[str, Any]]:
    """Replaces the hub's client by a list of answers; returns the calls that it gets."""
    hub = pytest.importorskip("huggingface_hub")
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **arguments: Any) -> str:
        calls.append({"repo": repo, **arguments})
        answer = answers[len(calls) - 1]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return calls


SNAPSHOT = HubSnapshot("owner/model", "0" * 40, files=("config.json", "*.safetensors"))


def test_complete_local_snapshot_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    calls = hub_answers(monkeypatch, tmp_path)
    assert fetch(SNAPSHOT) == tmp_path
    assert [(call["repo"], call["revision"], call["local_files_only"]) for call in calls] == [
        ("owner/model", "0" * 40, True)
    ]


def test_incomplete_local_snapshot_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, files in {"old": ["config.json"], "new": ["config.json", "model.safetensors"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    calls = hub_answers(monkeypatch, tmp_path / "old", tmp_path / "new")
    assert fetch(SNAPSHOT) == tmp_path / "new"
    assert [call["local_files_only"] for call in calls] == [True, False]


def test_hub_without_a_file_and_hub_out_of_reach_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    hub_answers(monkeypatch, FileNotFoundError("none"), tmp_path)
    with pytest.raises(InputError, match=r"owner/model@0+ from the Hugging Face hub has no file \*\.safetensors"):
        fetch(SNAPSHOT)
    hub_answers(monkeypatch, FileNotFoundError("none"), FileNotFoundError("offline mode"))
    with pytest.raises(InputError, match=r"cannot get owner/model.*offline mode; copy the hub's cache \(HF_HOME\)"):
        fetch(SNAPSHOT)
