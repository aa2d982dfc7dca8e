"""Downloads from a local server that breaks off, forgets and lies; truncated and forged archives."""

import gzip
import hashlib
import io
import itertools
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pretrain.common.console import say
from pretrain.common.errors import UserError
from tests.support.fuzzing import fuzz_tar
from tests.support.fuzzing.fuzz_tar import header
from tests.support.voc_archives import write_tar
from transfer.prepare.sets import download
from transfer.prepare.sets.download import demand_space, fetch, unpack

GB = 10**9
CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Server(ThreadingHTTPServer):
    """Serves CONTENT at any path and records the Range of each request."""

    ranges = True  # whether it supports Range
    break_after: list[int | None]  # bytes after which the next responses break off; None: never
    status = 200

    def handle_error(self, *_: object) -> None:
        pass  # clients that disconnect are part of the tests


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        limit = self.server.break_after.pop(0) if self.server.break_after else None
        self.wfile.write(CONTENT[start : start + limit] if limit is not None else CONTENT[start:])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(("127.0.0.1", 0), Handler)
    running.asked, running.break_after = [], []
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/data/archive.tar"


def refusal(call: object, *arguments: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "archive.tar"
    for _ in range(2):
        assert fetch(url(server), target, size=len(CONTENT), md5=MD5) == target
        assert target.read_bytes() == CONTENT
    assert server.asked == [None]
    assert [file.name for file in target.parent.iterdir()] == ["archive.tar"]


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after = [100_000, 50_000, 0]  # three times, the last without a byte
    fetch(url(server), tmp_path / "a", md5=MD5)
    assert server.asked == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_the_same_command_goes_on_after_it_gave_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.break_after = [100_000, 0]
    said = refusal(fetch, url(server), tmp_path / "a", size=len(CONTENT), md5=MD5)
    assert "closed early" in said and "same command" in said and f"at {tmp_path / 'a'} by hand" in said
    assert (tmp_path / "a.part").stat().st_size == 100_000 and not (tmp_path / "a").exists()
    fetch(url(server), tmp_path / "a", size=len(CONTENT), md5=MD5)
    assert server.asked[-1] == "bytes=100000-" and (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.part").write_bytes(CONTENT[:1234])
    fetch(url(server), tmp_path / "a", md5=MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_was_complete_gets_its_name(server: Server, tmp_path: Path, size: int | None) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT)
    fetch(url(server), tmp_path / "a", size=size, md5=MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    fetch(url(server), tmp_path / "a", md5=MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_other_content_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    said = refusal(fetch, url(server), tmp_path / "a", md5="0" * 32)
    assert MD5 in said and url(server) in said
    assert not list(tmp_path.iterdir())
    assert "bytes, not 5" in refusal(fetch, url(server), tmp_path / "a", size=5)
    (tmp_path / "a").write_text("mine")
    assert "remove it" in refusal(fetch, url(server), tmp_path / "a", md5=MD5)
    assert (tmp_path / "a").read_text() == "mine"


def test_no_such_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.status = 404
    said = refusal(fetch, url(server), tmp_path / "a")
    assert "404" in said and url(server) in said and "by hand" in said and len(server.asked) == 1


def test_no_server(server: Server, tmp_path: Path) -> None:
    there = url(server)
    server.shutdown()
    server.server_close()
    assert "refused" in refusal(fetch, there, tmp_path / "a")


def test_a_full_disk_is_said_first(server: Server, tmp_path: Path) -> None:
    said = refusal(fetch, url(server), tmp_path / "a", size=10**18)
    assert "needs 1000000000.0 GB" in said and "are free" in said and not server.asked
    demand_space(tmp_path / "not" / "yet", 1, "nothing")


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    return write_tar(path, files)


FILES = {"set/a.txt": b"a" * 5000, "set/deep/b.bin": CONTENT, "set/img/c.txt": b"c"}


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_unpack(kind: str, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / f"x.{kind}", FILES)
    folder = tmp_path / "out"
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "a.txt").write_bytes(b"cut")  # as left by another tool that was interrupted
    unpack(archive, folder, leave_out="/img/")
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {name: content for name, content in FILES.items() if "/img/" not in name}
    before = (folder / "set" / "deep" / "b.bin").stat().st_mtime_ns
    unpack(archive, folder)
    assert (folder / "set" / "deep" / "b.bin").stat().st_mtime_ns == before
    assert (folder / "set" / "img" / "c.txt").read_bytes() == b"c"


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_a_cut_archive_leaves_only_whole_files(kind: str, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / f"x.{kind}", FILES)
    archive.write_bytes(archive.read_bytes()[:60_000])
    assert "not a complete archive" in refusal(unpack, archive, tmp_path / "out")
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or file.read_bytes() == FILES[str(file.relative_to(tmp_path / "out"))]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
def test_nothing_is_written_outside(kind: str, name: str, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / f"x.{kind}", {name: b"x"})
    assert "outside" in refusal(unpack, archive, tmp_path / "in")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [archive.name]


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize(
    "name", ["a/" * 40 + "b.txt", "a/" * 1500 + "b.txt", ("a" * 200 + "/") * 6 + "b.txt"]
)
def test_a_name_of_very_many_folders_is_refused_before_anything_is_written(
    kind: str, name: str, tmp_path: Path
) -> None:
    archive = write_archive(tmp_path / f"x.{kind}", {"first.txt": b"x", name: b"x"})
    assert "too long or in too many folders" in refusal(unpack, archive, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert "is a link" in refusal(unpack, tmp_path / "x.tar", tmp_path / "in")


def test_a_missing_archive(tmp_path: Path) -> None:
    assert "cannot be unpacked" in refusal(unpack, tmp_path / "no.tar", tmp_path)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_checked_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / f"x.tar.{kind}"
    with tarfile.open(archive, f"w:{kind}") as tar:  # type: ignore[call-overload]
        for name, content in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = archive.read_bytes()
    for damaged in (
        whole[:-1],
        whole[:-8],
        whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:],
        whole[: len(whole) // 2],
    ):
        archive.write_bytes(damaged)
        assert "not a complete archive" in refusal(unpack, archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    archive.write_bytes(whole)
    unpack(archive, tmp_path / "out")
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in FILES.items())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "a/b"], "a is both a file and a folder"),
        (["ok", "\x1b[31m"], r"'\x1b[31m' is not the name of a file"),
        (["ok", "."], "'.' is not the name of a file"),
        (["ok", "x" * 300], "is too long or in too many folders"),
    ],
)
def test_names_are_checked_before_anything_is_written(names: list[str], words: str, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", {name: b"x" for name in names})
    assert words in refusal(unpack, archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_that_grows_beyond_the_disk(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar.gz"
    size = b"\x80" + (1 << 60).to_bytes(11, "big")
    archive.write_bytes(gzip.compress(header(b"0", size, b"a.jpg") + bytes(1024)))
    assert "GB are free" in refusal(unpack, archive, tmp_path / "out")


def test_zips_with_names_that_are_not_text(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        opened.writestr("ü", b"x")
    data = (tmp_path / "x.zip").read_bytes()
    for name in (b"\xff\xff", b"\x1b["):
        (tmp_path / "x.zip").write_bytes(data.replace("ü".encode(), name))
        assert refusal(unpack, tmp_path / "x.zip", tmp_path / "out").isprintable()
    assert not (tmp_path / "out").exists()


def test_tars_that_are_built_wrong(tmp_path: Path) -> None:
    outcomes = {index: fuzz_tar.check(fuzz_tar.make_case(0, index), tmp_path) for index in range(100)}
    assert {n: o for n, o in outcomes.items() if o not in ("accepted", "refused")} == {}
    assert 10 < list(outcomes.values()).count("accepted") < 90


def test_progress_is_a_bar_on_a_terminal_and_lines_by_time_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for stream in (Terminal(), io.StringIO()):
        now = itertools.count(100.0, 10.0)  # ten seconds between two looks at the clock
        monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda now=now: next(now)))
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("COLUMNS", "80")
        with download._progress("a.zip", 4 * GB, GB) as advance:
            advance(GB)
            advance(GB)
            say("above")  # which draws a bar again
        shown.append(stream.getvalue())
    assert "| 3000/4000  a.zip  100.0 MB/s  ETA 0:10" in shown[0] and "2.00" not in shown[0]
    assert shown[1].splitlines()[0] == "a.zip: 2.00 of 4.00 GB  100.0 MB/s  ETA 0:20"
