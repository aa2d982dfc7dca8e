"""A few thousand of the fuzzer's inputs; `python tests/support/fuzz.py` reads as many as one likes."""

import pytest

from tests.support.fuzz import run
from tests.support.fuzz_cases import HARMLESS, LAYOUTS


@pytest.mark.slow
def test_damaged_and_hostile_files_are_refused_and_harmless_ones_read() -> None:
    report = run(2000, seed=20)
    assert not report.findings, "\n".join(report.findings)
    harmless = sum(report.total(mutation=name) for name in HARMLESS)
    assert harmless >= 0.2 * 2000
    assert harmless == sum(report.total(mutation=name, outcome="accepted") for name in HARMLESS)
    assert all(report.total(layout=name, outcome="accepted") for name in LAYOUTS)
    assert report.total(outcome="refused") > 500
    assert report.memory < 1024  # MB
