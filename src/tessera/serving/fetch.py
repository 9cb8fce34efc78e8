"""Images by address: refused, unless the server was started with a list of allowed hosts or folders.

A request that names an address makes the server ask for it, from inside its network. So even an allowed host is asked only if
all its addresses are public, over a connection to exactly the address that was checked (a second look-up could answer otherwise),
with limits on size and time; a redirect is followed on the same host only, checked like the first request.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import UserError
from tessera.serving.errors import ApiError, invalid

REDIRECTS = 3
SECONDS = 10.0
"""For everything that one address needs."""
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-zA-Z0-9._-]+|[0-9a-fA-F:]+")
_HINT = "Send the image itself, as a data: URL."


@dataclass(frozen=True, slots=True)
class Allowed:
    """Where images may come from: hosts (name, and port if it is not the scheme's own), folders of this machine."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    folders: tuple[Path, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Allowed:
        """Of `images.example.org`, `images.example.org:8080`, `file:///srv/images`. Raises `UserError` for anything else."""
        hosts, folders = set(), []
        for entry in entries:
            if entry.lower().startswith("file:"):
                folders.append(_folder(entry))
                continue
            try:
                parts = urllib.parse.urlsplit(f"//{entry}")
                host, port = parts.hostname, parts.port
            except ValueError:
                host = port = None
            if not host or entry != parts.netloc or parts.username is not None or not _HOST.fullmatch(host):
                raise UserError(f"--allow-url wants a host (images.example.org) or a folder (file:///srv/images), not {entry!r}.")
            hosts.add((_name(host), port))
        return cls(frozenset(hosts), tuple(folders))


def load(url: str, param: str, allowed: Allowed, most: int) -> str | bytes:
    """What `open_image` takes: a data URL as it is, or the bytes behind an allowed address.

    Raises `ApiError` for an address that is not allowed, does not answer, or gives more than `most` bytes.
    """
    scheme = url[:16].partition(":")[0].lower()
    if scheme == "data":
        return url
    if scheme == "file" and allowed.folders:
        return _read_file(url, param, allowed, most)
    if scheme in _PORTS and allowed.hosts:
        return _download(url, param, allowed, most)
    shown = f"{scheme}: addresses" if scheme in ("http", "https", "file") else f"{url[:60]!r}: such addresses"
    raise _refused(f"{shown} are not fetched by this server. {_HINT}", param)


# Files


def _folder(entry: str) -> Path:
    parts = urllib.parse.urlsplit(entry)
    path = Path(urllib.parse.unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or not path.is_dir():
        raise UserError(f"--allow-url {entry}: there is no such folder; write file:///folder.")
    return path.resolve()


def _read_file(url: str, param: str, allowed: Allowed, most: int) -> bytes:
    outside = _refused("This file is not in a folder that the server may read.", param)
    try:
        parts = urllib.parse.urlsplit(url)
        path = Path(urllib.parse.unquote(parts.path)).resolve()
        if parts.netloc not in ("", "localhost") or not any(path.is_relative_to(folder) for folder in allowed.folders):
            raise outside
        if not path.is_file():  # what else has a name (a pipe, a device) may never end
            raise outside
        with open(path, "rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError):
        raise outside from None
    return _whole(data, param, most)


# Hosts


def _download(url: str, param: str, allowed: Allowed, most: int) -> bytes:
    deadline = time.monotonic() + SECONDS
    first = _target(url, param, allowed)
    target = first
    for _ in range(REDIRECTS + 1):
        try:
            answer = _ask(target, param, deadline, most)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise invalid(f"Failed to download the image: {_reason(error)}.", param, "invalid_image_url") from None
        if isinstance(answer, bytes):
            return answer
        target = _target(urllib.parse.urljoin(target.url, answer), param, allowed)
        if (target.scheme, target.host, target.port) != (first.scheme, first.host, first.port):
            raise _refused("The address leads to another host; that is not followed.", param)
    raise invalid(f"The address leads on more than {REDIRECTS} times.", param, "invalid_image_url")


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    scheme: str
    host: str
    port: int
    path: str


def _target(url: str, param: str, allowed: Allowed) -> _Target:
    """The parts of an address whose host is allowed."""
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, port = parts.scheme, _name(parts.hostname or ""), parts.port
        path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (f"?{parts.query}" if parts.query else "")
        url.encode("ascii")
    except ValueError:
        raise _refused("This is not a valid address.", param) from None
    if scheme not in _PORTS or parts.username is not None or any(c <= " " or c == "\x7f" for c in url):
        raise _refused("This is not a valid http or https address.", param)
    if (host, port) not in allowed.hosts and (port not in (None, _PORTS[scheme]) or (host, None) not in allowed.hosts):
        raise _refused(f"The host {host[:100]} is not one that this server fetches from. {_HINT}", param)
    return _Target(url, scheme, host, port or _PORTS[scheme], path)


def _ask(target: _Target, param: str, deadline: float, most: int) -> bytes | str:
    """The body of an answer, or where it leads. Raises `OSError`, `HTTPException` and `ApiError`."""
    address = resolve(target.host, target.port, param)
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection = _Pinned(target, address, left)
    # A host that sends a byte now and then never runs into the timeout of a single wait.
    watch = threading.Timer(left, connection.cut)
    watch.start()
    try:
        connection.request("GET", target.path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308) and answer.getheader("Location"):
            return str(answer.getheader("Location"))
        if answer.status != 200:
            raise invalid(f"Failed to download the image: its host says {answer.status}.", param, "invalid_image_url")
        data = answer.read(most + 1)
        if time.monotonic() >= deadline:
            raise TimeoutError
        return _whole(data, param, most)
    finally:
        watch.cancel()
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to one checked address; certificates are checked for the host's name."""

    def __init__(self, target: _Target, address: str, seconds: float) -> None:
        super().__init__(target.host, target.port, timeout=seconds)
        self._target, self._address, self._seconds = target, address, seconds
        self._opened: socket.socket | None = None  # `sock` is given away with an answer that ends with the connection

    def connect(self) -> None:
        self._opened = socket.create_connection((self._address, self._target.port), timeout=self._seconds)
        if self._target.scheme == "https":
            self._opened = ssl.create_default_context().wrap_socket(self._opened, server_hostname=self._target.host)
        self.sock = self._opened

    def cut(self) -> None:
        """Ends whatever waits for the host, from another thread."""
        if self._opened is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._opened, socket.SHUT_RDWR)


def resolve(host: str, port: int, param: str) -> str:
    """An address of a host. Raises `ApiError` if any of its addresses is an inner one, `OSError` if it has none."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found:
        raise OSError("the host has no address")
    if any(is_inner(address) for address in found):
        raise _refused("This address leads into an inner network; it is not fetched.", param)
    return found[0]


def is_inner(address: str) -> bool:
    """Whether an address is no public one: private, loopback, link-local, reserved, multicast, or a tunnel to
    one that cannot be told."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    wraps = isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo)
    return bool(wraps) or not ip.is_global or ip.is_multicast or ip.is_reserved or "%" in address


# Words


def _whole(data: bytes, param: str, most: int) -> bytes:
    if len(data) > most:
        raise invalid(f"The image has more than {most:,} bytes, the limit of this server.", param, "image_too_large")
    return data


def _name(host: str) -> str:
    return host.rstrip(".").lower()


def _refused(message: str, param: str) -> ApiError:
    return invalid(message, param, "invalid_image_url")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it took longer than {SECONDS:g} seconds"
    if isinstance(error, socket.gaierror):
        return "its host is not known"
    if isinstance(error, ssl.SSLError):
        return "its host has no valid certificate"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "its host did not answer as it should"
