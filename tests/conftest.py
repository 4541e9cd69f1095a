"""Of all tests: what collecting them has imported is left alone by the garbage collector."""

import gc


def pytest_collection():
    """Torch and transformers make millions of objects that stay: looking at them again and again takes a fifth of the unit tests' time."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
