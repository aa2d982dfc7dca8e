"""Tests of a GPU. Importing this package installs the import hook before a test imports detectron2.

That holds in spawned processes too, which import the test's module without conftest.py.
"""

import transfer  # noqa: F401
