"""Images by address: what is refused, and what is fetched. The only host asked is this machine, taken for a public one."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.serving import fetch
from tessera.serving.errors import ApiError
from tessera.serving.fetch import Allowed, is_inner, load

NONE = Allowed()
DATA = b"\x89PNG and so on"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:0808:0808::", "2001::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_inner_addresses(address: str) -> None:
    assert is_inner(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_public_addresses(address: str) -> None:
    assert not is_inner(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png", "https://example.org/a.png", "HTTPS://example.org", "file:///etc/passwd", "ftp://x/y",
        "/etc/passwd", "a.png", "", "javascript:alert(1)", "http:example.org", "\\\\host\\share", "x" * 10_000,
    ],
)  # fmt: skip
def test_addresses_are_refused_without_a_list(url: str) -> None:
    with pytest.raises(ApiError) as caught:
        load(url, "p", NONE, 100)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "p", "invalid_image_url")
    assert len(caught.value.message) < 300


def test_data_urls_need_no_list() -> None:
    assert load("data:,x", "p", NONE, 100) == "data:,x"


@pytest.mark.parametrize(
    "entry", ["", "*", "*.org", "http://example.org", "example.org/path", "a b", "u@example.org", "x:99999", "[::1"]
)
def test_what_no_list_may_hold(entry: str) -> None:
    with pytest.raises(UserError, match="--allow-url wants a host"):
        Allowed.parse([entry])


@pytest.mark.parametrize(
    "url",
    [
        "http://other.org/a", "http://pictures.org.evil.org/a", "http://pictures.org@evil.org/a", "http://pictures.org:8080/a",
        "http://u:p@pictures.org/a", "file:///etc/passwd", "ftp://pictures.org/a", "http://pictures.org\\@evil.org/",
        "http://xn--pictures.org/", "http://pictures.org /a", "http://[::1]/", "http:///a", "http://2130706433/",
        "http://pictures.org:80a/", "http://pictures.org/ä",
    ],
)  # fmt: skip
def test_only_the_hosts_of_the_list_are_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a host was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(ApiError) as caught:
        load(url, "p", Allowed.parse(["pictures.org"]), 100)
    assert caught.value.code == "invalid_image_url"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["169.254.169.254"]])
def test_an_allowed_host_with_an_inner_address_is_not_asked(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(ApiError, match="inner network"):
        load("http://pictures.org/a", "p", Allowed.parse(["pictures.org"]), 100)
    with pytest.raises(ApiError, match="inner network"):
        load("https://pictures.org:443/a", "p", Allowed.parse(["Pictures.org."]), 100)


# Files


def test_files_of_allowed_folders_only(tmp_path: Path) -> None:
    folder, secret = tmp_path / "pictures", tmp_path / "secret.png"
    folder.mkdir()
    (folder / "a b.png").write_bytes(DATA)
    secret.write_bytes(DATA)
    (folder / "link.png").symlink_to(secret)
    (folder / "inside.png").symlink_to(folder / "a b.png")
    os.mkfifo(folder / "pipe")
    allowed = Allowed.parse([f"file://{folder}"])
    assert load(f"file://{folder}/a%20b.png", "p", allowed, 100) == DATA
    assert load(f"file://localhost{folder}/inside.png", "p", allowed, 100) == DATA
    for path in (
        secret,
        folder / "link.png",
        folder / "../secret.png",
        folder / "pipe",
        folder / "none.png",
        folder,
        "/dev/zero",
    ):
        with pytest.raises(ApiError, match="not in a folder that the server may read"):
            load(f"file://{path}", "p", allowed, 100)
    for url in (f"file://host{folder}/a%20b.png", f"file://{folder}/%00", f"file:{secret}"):
        with pytest.raises(ApiError, match="not in a folder"):
            load(url, "p", allowed, 100)
    with pytest.raises(ApiError, match="more than 5 bytes"):
        load(f"file://{folder}/a%20b.png", "p", allowed, 5)
    with pytest.raises(UserError, match="there is no such folder"):
        Allowed.parse([f"file://{tmp_path}/none"])


# Downloads


class Host(http.server.BaseHTTPRequestHandler):
    """Answers by path."""

    seen: list[tuple[str, str]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        type(self).seen.append((self.headers["Host"], self.path))
        place = self.path.partition("?")[0]
        if place.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", place if place == "/to/round" else place.removeprefix("/to/").replace("_", "/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif place == "/slow":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                pass
            self.close_connection = True
        elif place == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(10_000):
                    self.wfile.write(b"x" * 1000)
            except OSError:
                pass
            self.close_connection = True
        else:
            self.send_response(404 if place == "/none" else 200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a web server on this machine, called pictures.org and taken for public."""
    Host.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.server_port))]
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *a, **k: here if name == "pictures.org" else real(name, *a, **k))
    monkeypatch.setattr(fetch, "is_inner", lambda address: address != "127.0.0.1")
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def get(port: int, path: str, most: int = 100) -> str | bytes:
    return load(f"http://pictures.org:{port}{path}", "p", Allowed.parse([f"pictures.org:{port}"]), most)


def test_an_allowed_host_is_asked_by_its_name(host: int) -> None:
    assert get(host, "/a%20b.png?size=3&x=ä".replace("ä", "%C3%A4")) == DATA
    assert Host.seen == [(f"pictures.org:{host}", "/a%20b.png?size=3&x=%C3%A4")]


def test_redirects_are_followed_on_the_same_host_only(host: int) -> None:
    assert get(host, "/to/_a") == DATA
    for path, says in (
        ("/to/http:__evil.org_a", "is not one that this server fetches from"),
        (f"/to/http:__127.0.0.1:{host}_a", "is not one that this server fetches from"),
        ("/to/file:__etc_passwd", "not a valid http"),
        ("/to/round", "more than 3 times"),
    ):
        Host.seen.clear()
        with pytest.raises(ApiError, match=says):
            get(host, path)
        assert len(Host.seen) <= 4
    both = Allowed.parse([f"pictures.org:{host}", f"127.0.0.1:{host}"])
    with pytest.raises(ApiError, match="leads to another host"):
        load(f"http://pictures.org:{host}/to/http:__127.0.0.1:{host}_a", "p", both, 100)


def test_what_a_host_may_do_wrong(host: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ApiError, match="its host says 404"):
        get(host, "/none")
    with pytest.raises(ApiError, match="more than 5 bytes"):
        get(host, "/a", most=5)
    with pytest.raises(ApiError, match="more than 5,000 bytes"):
        get(host, "/endless", most=5000)
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(ApiError, match=r"it took longer than 0\.3 seconds"):
        get(host, "/slow")
    assert time.monotonic() - begin < 3
    with pytest.raises(ApiError, match="has no valid certificate|did not answer"):
        load(f"https://pictures.org:{host}/a", "p", Allowed.parse([f"pictures.org:{host}"]), 100)


def test_a_host_that_is_not_there(host: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ApiError, match="Failed to download the image: connection refused"):
        load(f"http://pictures.org:{port}/a", "p", Allowed.parse([f"pictures.org:{port}"]), 100)
