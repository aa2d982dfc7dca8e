"""Reading .deb and .rcc files that were made by dpkg-deb, or by hand from the description of the format."""

import io
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest

from pretrain.common.errors import UserError
from transfer.prepare.demo import debian_packages

FILES = {"usr/share/x/odd.png": b"abc", "usr/share/x/even.png": b"abcd" * 1000, "usr/share/x/other": b"no"}


def make_deb(path: Path, *, before: bytes = b"odd") -> Path:
    """A package made by dpkg-deb; the member before the data has an odd length, so it is padded."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo("./" + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar": before, "data.tar.xz": buffer.getvalue()}
    blob = b"!<arch>\n"
    for name, content in members.items():
        blob += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        blob += b"\n" * (len(content) % 2)
    path.write_bytes(blob)
    return path


def test_reads_wanted_files_of_a_package(tmp_path: Path) -> None:
    deb = make_deb(tmp_path / "x_1_all.deb")
    wanted = {"usr/share/x/odd.png", "usr/share/x/even.png", "usr/share/x/absent.png"}
    found = dict(debian_packages.read_deb(deb, wanted))
    assert found == {name: FILES[name] for name in ("usr/share/x/odd.png", "usr/share/x/even.png")}


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb")
@pytest.mark.parametrize("compression", ["xz", "gzip", "none"])
def test_reads_what_dpkg_deb_made(tmp_path: Path, compression: str) -> None:
    tree = tmp_path / "tree"
    for name, content in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    (tree / "DEBIAN" / "control").write_text(control)
    deb = tmp_path / "x_1_all.deb"
    subprocess.run(["dpkg-deb", "-Z", compression, "--build", tree, deb], check=True, capture_output=True)
    assert dict(debian_packages.read_deb(deb, set(FILES))) == FILES


def test_refuses_what_is_no_whole_package(tmp_path: Path) -> None:
    whole = make_deb(tmp_path / "x_1_all.deb").read_bytes()
    damaged_end = (
        whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    )  # in the index of the xz, after the last member
    for blob in (b"", b"text", whole[:100], whole[:-200], whole[:-2], damaged_end):
        broken = tmp_path / "y_1_all.deb"
        broken.write_bytes(blob)
        with pytest.raises(UserError, match="not a complete Debian package"):
            list(debian_packages.read_deb(broken, {"usr/share/x/other"}))


def test_package_names(tmp_path: Path) -> None:
    assert (
        debian_packages.package_name(make_deb(tmp_path / "gcompris-qt-data_3.1-2_all.deb"))
        == "gcompris-qt-data"
    )
    for wrong in (make_deb(tmp_path / "renamed.deb"), tmp_path / "absent_1_all.deb"):
        with pytest.raises(UserError, match=wrong.name):
            debian_packages.package_name(wrong)


def make_rcc(version: int) -> bytes:
    """`a/b.png` (plain) and `c.png` (zlib), written by hand in the order header, data, names, tree."""
    packed = struct.pack(">I", 5) + zlib.compress(b"hello")
    data = struct.pack(">I", 3) + b"abc" + struct.pack(">I", len(packed)) + packed
    names, name_at = b"", {}
    for name in ("a", "b.png", "c.png"):
        name_at[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    time = b"" if version == 1 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 2, 1) + time  # the root: two children from entry 1 on
    tree += struct.pack(">IHII", name_at["a"], 2, 1, 3) + time
    tree += struct.pack(">IHHHI", name_at["c.png"], 1, 0, 0, 7) + time
    tree += struct.pack(">IHHHI", name_at["b.png"], 0, 0, 0, 0) + time
    header = 24 if version == 3 else 20
    offsets = (header + len(data) + len(names), header, header + len(data))
    return struct.pack(">4sIIII", b"qres", version, *offsets) + bytes(header - 20) + data + names + tree


@pytest.mark.parametrize("version", [1, 2, 3])
def test_reads_qt_resources(version: int) -> None:
    blob = make_rcc(version)
    assert dict(debian_packages.read_rcc(blob, {"a/b.png", "c.png"})) == {
        "a/b.png": b"abc",
        "c.png": b"hello",
    }
    assert dict(debian_packages.read_rcc(blob, {"b.png"})) == {}


@pytest.mark.parametrize("blob", [b"", b"qres", b"PNG?" + bytes(40), make_rcc(3)[:-30]])
def test_refuses_what_is_no_qt_resource(blob: bytes) -> None:
    with pytest.raises(ValueError, match="Qt resource file"):
        list(debian_packages.read_rcc(blob, {"a/b.png"}))


def fake_apt(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


def test_fetches_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path, "echo x > one_1_all.deb", monkeypatch)
    assert debian_packages.fetch(["one"], tmp_path) == [tmp_path / "one_1_all.deb"]


def test_says_in_one_line_why_it_cannot_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(
        tmp_path, "echo 'W: bother' >&2; echo 'E: Unable to locate package one' >&2; exit 100", monkeypatch
    )
    with pytest.raises(UserError, match=r"E: Unable to locate package one.*--deb FILE") as caught:
        debian_packages.fetch(["one"], tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed"):
        debian_packages.fetch(["one"], tmp_path)
