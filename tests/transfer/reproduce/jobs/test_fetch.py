"""Released files from a server that is on this machine: what arrives, and how each failure reads."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from pretrain.common.errors import UserError
from tests.support.checkpoints import plain_file, small_network
from tests.support.vit.layouts import vit
from transfer.convert.recognise import read_source
from transfer.prepare.sets import download
from transfer.reproduce.jobs import fetch


class Server(ThreadingHTTPServer):
    """Answers with `status` and `content`, or not at all while `silent`."""

    status, content, silent = 200, b"", False
    asked: list[str]

    def handle_error(self, *_: object) -> None:
        pass  # the client gives up


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.silent:
            stop.wait(5)
            return
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        pass


stop = threading.Event()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(("127.0.0.1", 0), Handler)
    running.asked = []
    running.content = plain_file(tmp_path / "source.pth", small_network().state_dict()).read_bytes()
    stop.clear()
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    stop.set()
    running.shutdown()
    running.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/released.pth"


def refusal(server: Server, path: Path, digest: str = "") -> str:
    with pytest.raises(UserError) as caught:
        fetch.fetch(url(server), path, digest, name="swav_800ep")
    said = str(caught.value)
    assert "\n" not in said and said.endswith("or give a file that you have: --init swav_800ep=FILE"), said
    assert not path.exists()
    return said


def test_a_released_file_is_downloaded_compared_and_read(server: Server, tmp_path: Path) -> None:
    for kind in ("md5", "sha256"):
        wanted = hashlib.new(kind, server.content).hexdigest()[:8]
        path = tmp_path / kind
        assert (
            fetch.fetch(url(server), path, f"{kind} {wanted}") == hashlib.sha256(server.content).hexdigest()
        )
        assert read_source(path).kind == "torchvision"


def test_a_file_that_needs_flags_is_read_with_them(server: Server, tmp_path: Path) -> None:
    """MAE-Lite's layout: two networks under `model`, of a width that does not say the number of heads."""
    networks = {
        f"module.{name}.": vit(seed, width=48)
        for seed, name in enumerate(("base_encoder", "momentum_encoder"))
    }
    state = {
        prefix + name: tensor for prefix, network in networks.items() for name, tensor in network.items()
    }
    source = tmp_path / "source.pth"
    torch.save({"start_epoch": 400, "model": state, "optimizer": {}}, source)
    server.content = source.read_bytes()
    flags = ["--heads", "4", "--branch", "model.base_encoder"]
    assert (
        fetch.fetch(url(server), tmp_path / "a", "", flags=flags)
        == hashlib.sha256(server.content).hexdigest()
    )
    assert "choose one with --branch" in refusal(server, tmp_path / "b")
    server.content = plain_file(source, vit(1, width=48)).read_bytes()
    assert fetch.fetch(url(server), tmp_path / "c", "", flags=[*flags[:2], "--resample-patch", "16"])


def test_each_failure_is_one_line_that_names_the_alternative(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    assert "its md5 is" in refusal(server, path, "md5 00000000")
    server.content = b"<!doctype html><title>Sign in</title>"
    assert "holds no weights" in refusal(server, path)
    server.status = 404
    assert "the server answered 404" in refusal(server, path)
    server.status, server.silent = 200, True
    monkeypatch.setattr(download, "TIMEOUT_S", 0.1)
    assert "timed out" in refusal(server, path)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["source.pth"]


def test_a_dead_address_names_the_alternative_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the arguments of the job's command; nothing listens at the port once the server is closed."""
    gone = url(server)
    server.shutdown()
    server.server_close()
    words = [gone, str(tmp_path / "file"), "", str(tmp_path / "kept"), "dino_R50"]
    monkeypatch.setattr("sys.argv", ["fetch", *words])
    with pytest.raises(UserError, match=r"Connection refused.*--init dino_R50=FILE"):
        fetch.main()
    assert sorted(found.name for found in tmp_path.iterdir()) == ["source.pth"]


def test_a_page_on_google_drive_becomes_the_address_of_its_file() -> None:
    page = "https://drive.google.com/file/d/1Ox2RoFbTrrllbwvITdZvwkNnKUQSUPmV/view"
    assert fetch.direct(page).startswith("https://drive.usercontent.google.com/download?id=1Ox2RoFbTrrllbwv")
    assert fetch.direct("https://example.org/a.pth") == "https://example.org/a.pth"
