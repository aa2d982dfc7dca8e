"""Set-up for the tests that need a GPU, before any of them uses it."""

import os

# cuBLAS reads it when it starts; without it, it has no deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
