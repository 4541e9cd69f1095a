"""Of all tests: what collecting them has imported is left alone by the garbage collector; Ray's workers get
as much of the machine as others."""

import gc
import os

os.environ.setdefault("RAY_worker_niceness", "0")  # as `session` has it; some tests start a Ray of their own


def pytest_collection():
    """Torch and transformers make millions of objects that stay: looking at them again and again takes a
    fifth of the unit tests' time."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
