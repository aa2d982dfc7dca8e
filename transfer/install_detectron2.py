"""Install detectron2 in this Python environment, unless it is already installed.

    python tools/install_detectron2.py              # the official v0.6 Python files, no C++ extension
    python tools/install_detectron2.py --from git   # the official repository, compiled (git, a C++ compiler)

Run it after `pip install -e .`, which installs the libraries that detectron2 imports. This script uses only the
standard library, because it runs before anything else in the project can be imported.
"""

from __future__ import annotations  # so that an old Python gets as far as the message about its version

import argparse
import base64
import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The PyPI sdist holds the Python files of the official v0.6 tag, byte for byte, without layers/csrc.
SDIST = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
GIT = "git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"
OLDEST_PYTHON = (3, 10)
INSTALL_LIBRARIES = "`pip install -c constraints.txt -e .`"

DIST_INFO = "detectron2-0.6.dist-info"
METADATA = """\
Metadata-Version: 2.1
Name: detectron2
Version: 0.6
Summary: pb1-detectron2 0.6 sdist without its C++ extension (tools/install_detectron2.py)
Home-page: https://github.com/facebookresearch/detectron2
License: Apache-2.0
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: tools/install_detectron2.py
Root-Is-Purelib: true
Tag: py3-none-any
"""

SELF_CHECK = """
import detectron2
from transfer import d2_compat
from detectron2 import layers, model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.visualizer import Visualizer
about = d2_compat.describe()
compiled = "with" if about["has_C"] else "without"
print(f"detectron2 {about['version']} ({about['origin']}), {compiled} its C++ extension")
"""


class InstallError(Exception):
    """A failure that the user can fix; the message is one line."""


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    started = Path(sys.argv[0]).name  # install_detectron2.py, or the console command of an installed package
    about = (
        __doc__ if started.endswith(".py") else __doc__.replace("python tools/install_detectron2.py", started)
    )
    parser = argparse.ArgumentParser(description=about, formatter_class=layout)
    parser.add_argument("--from", choices=("sdist", "git"), default="sdist", help="where to get it [sdist]")
    source = vars(parser.parse_args())["from"]
    if sys.version_info < OLDEST_PYTHON:
        raise InstallError(f"Python {python_version()} is too old: use Python 3.10 or newer")
    if is_there("detectron2"):
        print("detectron2 is already installed: kept as it is")
    else:
        for needed in ("torch", "setuptools", "pip"):
            if not is_there(needed):
                raise InstallError(f"{needed} is not installed: run {INSTALL_LIBRARIES} first")
        if source == "git":
            install_from_git()
        else:
            install_from_sdist()
    print(self_check())


def python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def is_there(package: str) -> bool:
    """Return whether `package` can be found. It may be broken: this script does not replace it then."""
    return importlib.util.find_spec(package) is not None


def install_from_git() -> None:
    """Compile and install the official repository at the pinned commit, with pip."""
    pip("install", "--no-deps", "--no-build-isolation", GIT, hint="needs git, a C++ compiler and the network")


def install_from_sdist() -> None:
    """Download the sdist, check its hash, and install its Python files as a pure wheel."""
    with tempfile.TemporaryDirectory() as folder:
        sdist = download_sdist(Path(folder))
        wheel = build_wheel(sdist, Path(folder) / "detectron2-0.6-py3-none-any.whl")
        pip("install", "--no-deps", "--no-index", str(wheel), hint="is this environment writable?")


def download_sdist(folder: Path) -> Path:
    """Download the sdist into `folder`. pip checks the hash *before* it runs the sdist's setup.py."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST} --hash=sha256:{SHA256}\n")
    options = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes")
    hint = "is the package index reachable? A detectron2 that is already installed would be used instead"
    pip("download", *options, "--dest", str(folder), "--requirement", str(requirements), hint=hint)
    found = list(folder.glob("*.tar.gz"))
    if len(found) != 1 or hashlib.sha256(found[0].read_bytes()).hexdigest() != SHA256:
        raise InstallError(f"{SDIST}: the downloaded file is not the expected one (SHA-256 {SHA256})")
    return found[0]


def build_wheel(sdist: Path, wheel: Path) -> Path:
    """Pack the sdist's `detectron2/` folder into a pure wheel, so that pip can list and uninstall it."""
    files = {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None and name.startswith("detectron2/"):
                files[name] = stream.read()
            elif stream is not None and name == "LICENSE":
                files[f"{DIST_INFO}/LICENSE"] = stream.read()
    files[f"{DIST_INFO}/METADATA"] = METADATA.encode()
    files[f"{DIST_INFO}/WHEEL"] = WHEEL.encode()
    files[f"{DIST_INFO}/RECORD"] = record(files).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def record(files: dict[str, bytes]) -> str:
    """Return the wheel's RECORD: name, hash and size of every file."""
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{DIST_INFO}/RECORD,,", ""])


def pip(*arguments: str, hint: str) -> None:
    """Run pip quietly. On failure raise one line with pip's last error message and the hint."""
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    result = run(command, environment)
    if result.returncode == 0:
        return
    output = result.stdout + result.stderr
    if "DO NOT MATCH THE HASHES" in output:
        raise InstallError(f"{SDIST}: SHA-256 differs from {SHA256}; none of its code was run or installed")
    lines = [line.strip() for line in output.splitlines()]
    # git's message says more than pip's "failed"
    errors = [line for line in lines if line.startswith("fatal:")]
    errors = errors or [line for line in lines if line.lower().startswith("error")]
    raise InstallError(f"pip {arguments[0]} failed: {errors[-1] if errors else 'no message'} ({hint})")


def self_check() -> str:
    """Import what the project uses in a fresh interpreter, and return the line that describes the detectron2."""
    result = run([sys.executable, "-c", SELF_CHECK], {**os.environ, "PYTHONPATH": python_path()})
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise InstallError(
            f"detectron2 cannot be imported on Python {python_version()}: {reason} "
            f"(to install the libraries it needs, run {INSTALL_LIBRARIES})"
        )
    return result.stdout.strip().splitlines()[-1]


def python_path() -> str:
    """Return PYTHONPATH with this project added at the end, so that a detectron2 checkout named there comes first."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # Not in the caller's folder: a folder called detectron2 there would be taken for the package.
    return subprocess.run(
        command,
        env=environment,
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )


def program() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for names in pip's lines
    try:
        main()
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    program()
