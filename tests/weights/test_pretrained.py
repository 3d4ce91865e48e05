"""Public weights by name, from a server on loopback that misbehaves as asked."""

import errno
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import googlenet_jax as gj
from googlenet_jax.data.imagenet import class_names, imagenet_classes
from googlenet_jax.errors import UserError
from googlenet_jax.weights import pretrained
from googlenet_jax.weights.convert import read_weights
from tests.weights.test_convert import assert_same, state_dict

pytestmark = pytest.mark.usefixtures("in_process")


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under every path, and notes the ranges that were asked for.

    `break_after`: bytes after which the first answer breaks off. `ranges`: whether ranges are
    heeded. `redirect`: where to.
    """

    content = b""
    break_after: int | None = None
    ranges = True
    redirect: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        start = (
            int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        )
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        broken, server.break_after = server.break_after, None
        self.wfile.write(body if broken is None else body[:broken])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves narrow weights as those of the name "narrow"; the cache is empty."""
    torch.save(state_dict("googlenet_torchvision", aux_heads=False), tmp_path / "w.pth")
    with Server() as running:
        running.content = (tmp_path / "w.pth").read_bytes()
        digest = hashlib.sha256(running.content).hexdigest()[:8]
        url = f"http://127.0.0.1:{running.server_port}/narrow-{digest}.pth"
        public = pretrained.Public(
            url, "sha256", digest, "its name", "googlenet_torchvision", {"width": 0.125}
        )
        monkeypatch.setitem(pretrained.PUBLIC, "narrow", public)
        monkeypatch.setenv("GOOGLENET_JAX_CACHE", str(tmp_path / "cache"))
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def cached(tmp_path: Path) -> list[str]:
    return sorted(entry.suffix for entry in (tmp_path / "cache").iterdir())


def test_downloads_once_checks_and_converts(server: Server, tmp_path: Path) -> None:
    loaded = gj.load("narrow")
    model, variables = loaded.model, loaded.variables
    assert_same(
        variables,
        gj.weights.from_torch(model, state_dict("googlenet_torchvision", aux_heads=False)),
    )
    gj.load("narrow")
    assert server.asked == [None]
    assert cached(tmp_path) == [".safetensors"]
    assert read_weights(pretrained.pretrained_file("narrow")).preprocessing is not None


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(ranges: bool, server: Server, tmp_path: Path) -> None:
    server.break_after, server.ranges = 1000, ranges
    with pytest.raises(
        UserError,
        match=r"the connection broke after 1,000 of .* put the file at .*narrow-\w{8}\.pth$",
    ):
        gj.load("narrow")
    assert cached(tmp_path) == [".part"]
    gj.load("narrow")
    assert server.asked == [None, "bytes=1000-"]
    assert cached(tmp_path) == [".safetensors"]


def test_a_file_that_is_not_the_publishers_is_refused_and_removed(
    server: Server, tmp_path: Path
) -> None:
    server.content = server.content[:-1] + b"\x00\x01"
    with pytest.raises(
        UserError, match=r"its sha256 begins with \w{8}, expected \w{8} \(its name\)"
    ):
        gj.load("narrow")
    assert cached(tmp_path) == []


def test_offline_it_says_which_file_to_put_where(server: Server, tmp_path: Path) -> None:
    content, name = server.content, pretrained.PUBLIC["narrow"].file_name
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"the download failed .* put the file at") as caught:
        gj.load("narrow")
    goal = tmp_path / "cache" / name
    assert str(caught.value).endswith(str(goal))
    goal.write_bytes(content)
    assert gj.load("narrow").model.num_classes == 5


def test_a_full_disk_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pretrained, "_copy", full)
    with pytest.raises(
        UserError, match="can't be written: No space left on device; free some space"
    ):
        gj.load("narrow")


def test_no_redirection_away_from_https() -> None:
    handler = pretrained._OnlyHttps("https://example.org/x.pth")
    with pytest.raises(OSError, match="which is not HTTPS"):
        handler.redirect_request(None, None, 302, "", {}, "http://example.org/x.pth")


def test_an_unknown_name_has_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'googlenet_torchvision'"):
        gj.load("googlenet_torchvison")


def test_public_files_are_https_and_their_digests_are_stated() -> None:
    for public in pretrained.PUBLIC.values():
        assert public.url.startswith("https://")
        full = {"sha1": 40, "md5": 32}.get(public.algorithm)
        assert len(public.digest) == full if full else public.digest in public.file_name


def test_imagenets_classes() -> None:
    classes = imagenet_classes()
    assert (
        len({entry.wordnet_id for entry in classes})
        == len({entry.name for entry in classes})
        == 1000
    )
    assert [entry.wordnet_id for entry in classes] == sorted(entry.wordnet_id for entry in classes)
    assert classes[0] == ("n01440764", "tench")
    assert classes[207] == ("n02099601", "golden retriever")
    assert classes[999] == ("n15075141", "toilet tissue")
    assert class_names(background=True)[:2] == ("background", "tench")
