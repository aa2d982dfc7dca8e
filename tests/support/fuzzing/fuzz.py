"""Damaged, hostile and harmless variants of every kind of checkpoint, against the readers.

python tests/support/fuzzing/fuzz.py --inputs 100000 --seed 0

Each input is a function of (seed, index). The reader of the box runs without its process, in a worker of limited
memory, since that is ten times as fast; where the worker dies, hangs or runs out of memory, and for one input in 200,
the input is read in the box. Nothing may run (sentinel files, audited calls), nothing but a one-line `UserError` may be
raised, no input may take more than 20 s; what is accepted must be the query network, tensor by tensor, by the
names that `tests/support/layouts.py` writes down; harmless variants must be
accepted. One in 20 is also inspected, one in 25 converted and read as a weights file.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[3])  # not tests/support/fuzzing/

import torch  # noqa: E402

from pretrain.common.errors import UserError  # noqa: E402
from pretrain.tensor_files import box, inside  # noqa: E402
from tests.support.fuzzing.fuzz_cases import Case, make_case  # noqa: E402

LIMIT = 20.0  # seconds for one input
MEMORY = 1 << 30  # bytes above what the libraries take
WATCHED = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect",
           "webbrowser.open", "ctypes.dlopen", "urllib.Request"}  # fmt: skip


@dataclass
class Report:
    """What a run saw: (layout, mutation, outcome) -> inputs, and the findings, each a line."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: float = 0.0  # MB, the most that a worker grew

    def total(self, **wanted: str) -> int:
        keys = ("layout", "mutation", "outcome")
        return sum(
            n for row, n in self.counts.items() if all(row[keys.index(k)] == v for k, v in wanted.items())
        )

    def table(self, column: int) -> str:
        """Accepted and refused by layout (0) or mutation (1)."""
        rows: dict[str, Counter[str]] = {}
        for row, count in self.counts.items():
            rows.setdefault(row[column], Counter())[row[2]] += count
        outcomes = sorted({row[2] for row in self.counts})
        width = max(map(len, rows))
        lines = [" " * width + "".join(f"{outcome:>12}" for outcome in outcomes)]
        lines += [
            f"{name:<{width}}" + "".join(f"{rows[name][o]:>12}" for o in outcomes) for name in sorted(rows)
        ]
        return "\n".join(lines)


def check(case: Case, folder: Path, index: int) -> str:
    """`accepted` or `refused`; anything else is a finding."""
    from transfer.convert.program.networks import read_any
    from transfer.convert.program.report import describe
    from transfer.convert.weights_file import read_weights

    path = folder / f"input{case.suffix}"
    path.write_bytes(case.data)
    if index % 20 == 0:
        problem = _guarded(lambda: _lines(describe(path)))
        if problem not in ("accepted", "refused"):
            return f"--inspect: {problem}"
    if index % 25 == 0:
        problem = _guarded(lambda: read_weights(path))
        if problem not in ("accepted", "refused"):
            return f"read_weights: {problem}"
    found: list[Any] = []
    outcome = _guarded(lambda: found.append(read_any(path)))
    if outcome == "accepted":
        if wrong := case.differs(found[0].backbone):
            return f"wrong output: {wrong} (kind {found[0].kind}, branch {found[0].branch})"
        if index % 25 == 0:
            return _converted(case, path, folder)
    elif outcome == "refused" and case.harmless:
        return f"a harmless variant was refused: {_message(path)}"
    return outcome


def _converted(case: Case, path: Path, folder: Path) -> str:
    from transfer.convert.program.networks import convert_any
    from transfer.convert.weights_file import read_weights

    output = folder / "output.pkl"
    outcome = _guarded(lambda: convert_any(path, output, verify=False))
    if outcome == "accepted":
        if wrong := case.differs_from_detectron2(read_weights(output)["model"]):
            return f"wrong file: {wrong}"
        output.unlink()
    elif outcome == "refused" and output.exists():
        return "a refused input left a file"
    return "accepted" if outcome == "refused" else outcome  # narrow basic blocks are refused by convert


def _guarded(call: Any) -> str:
    try:
        call()
    except UserError as error:
        text = str(error)
        return (
            "refused"
            if text.isprintable() and len(text) < 3000
            else f"message is not one line: {text!r:.300}"
        )
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]} at {_where(error)}"
    return "accepted"


def _lines(lines: list[str]) -> None:
    if not all(line.isprintable() for line in lines):
        raise ValueError("a line of --inspect is not printable")


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno} {place}"[:200]
        trace = trace.tb_next
    return place


def _message(path: Path) -> str:
    from transfer.convert.program.networks import read_any

    try:
        read_any(path)
    except UserError as error:
        return str(error)[:300]
    return ""


def _without_process(path: Path, file: Any, form: str, size: int) -> tuple[Any, tuple[str, ...]]:
    """Read as `box.read` does, in this process."""
    file.seek(0)
    header, storages = inside.read(form, file, size)
    tensors = [torch.frombuffer(bytearray(s), dtype=torch.uint8) if s else torch.empty(0) for s in storages]
    return box.decoded(path, json.loads(json.dumps(header)), tensors)


def _worker(pipe: Any, start: int, stop: int, seed: int, folder: Path, boxed: bool, grown: bool) -> None:
    torch.set_num_threads(1)
    heard: list[str] = []
    box_itself = [sys.executable, "-I", "-S", "-c", box._START]
    boxed_read = box.read
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and not (event == "subprocess.Popen" and list(arguments[1][:5]) == box_itself):
            heard.append(event)

    sys.addaudithook(listen)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(start, stop):
        pipe.send(("begin", index, "?", "being made"))
        case = make_case(seed, index, folder / "sentinel", grown=grown)
        heard.clear()
        pipe.send(("begin", index, case.layout, case.mutation))
        began = time.monotonic()
        in_box = boxed or index % 200 == 0
        box.read = boxed_read if in_box else _without_process
        outcome = check(case, folder, index)
        if outcome.startswith("MemoryError") and not in_box:
            box.read = boxed_read
            outcome = check(case, folder, index)
        if (folder / "sentinel").exists() or heard:
            outcome = f"CODE RAN: {heard or 'sentinel'}"
            (folder / "sentinel").unlink(missing_ok=True)
        swelled = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pipe.send(("end", index, outcome, time.monotonic() - began, swelled))
    pipe.send(("done",))


def run(inputs: int, *, seed: int = 0, start: int = 0, grown: bool = False, verbose: bool = False) -> Report:
    """Read `inputs` variants, one after another, in a worker that is replaced when it dies or hangs."""
    report = Report()
    context = multiprocessing.get_context("fork")
    index, stop, began, boxed = start, start + inputs, time.monotonic(), False
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for first in (0, 1):  # imports and networks, before workers are forked and limited
            check(make_case(seed, first, Path(folder) / "sentinel"), Path(folder), 0)
        while index < stop:
            ours, theirs = context.Pipe()
            end = index + 1 if boxed else stop
            worker = context.Process(
                target=_worker, args=(theirs, index, end, seed, Path(folder), boxed, grown)
            )
            worker.start()
            theirs.close()
            index, ended = _listen(ours, worker, index, report, boxed=boxed, verbose=verbose, began=began)
            boxed = not ended  # the input that ended the worker is read again, in the box
            worker.join(5)
            if worker.is_alive():
                worker.kill()
    return report


def _listen(
    pipe: Any, worker: Any, index: int, report: Report, *, boxed: bool, verbose: bool, began: float
) -> tuple[int, bool]:
    """Collect a worker's results until it ends; return the index to continue with, and whether all is well."""
    layout = mutation = "?"
    while True:
        try:
            if not pipe.poll((LIMIT if layout != "?" else 60) + 60 * boxed):
                worker.kill()
                raise EOFError
            message = pipe.recv()
        except EOFError:
            worker.join(5)
            if not boxed:
                return index, False
            report.findings.append(
                f"{index} {layout}, {mutation}: the process died or hung ({worker.exitcode})"
            )
            return index + 1, True
        if message[0] == "done":
            return index + 1, True
        if message[0] == "begin":
            _, index, layout, mutation = message
            continue
        _, _, outcome, seconds, swelled = message
        known = outcome in ("accepted", "refused")
        report.counts[layout, mutation, outcome if known else "FINDING"] += 1
        report.slowest, report.memory = max(report.slowest, seconds), max(report.memory, swelled)
        if not known:
            report.findings.append(f"{index} {layout}, {mutation}: {outcome}")
            if verbose:
                print(report.findings[-1], flush=True)
        if verbose and index % 2000 == 1999:
            rate = sum(report.counts.values()) / (time.monotonic() - began)
            print(f"{index + 1} inputs, {rate:.0f}/s, {len(report.findings)} findings", flush=True)


def main() -> None:
    """Run, print the tables, fail if anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="index of the first input")
    parser.add_argument("--grown", action="store_true", help="only pickles that are grown opcode by opcode")
    args = parser.parse_args()
    report = run(args.inputs, seed=args.seed, start=args.start, grown=args.grown, verbose=True)
    print(report.table(0), report.table(1), sep="\n\n")
    print(
        f"\n{sum(report.counts.values())} inputs; slowest {report.slowest:.2f} s; grew by {report.memory:.0f} MB"
    )
    print("\n".join(report.findings) or "no findings")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
