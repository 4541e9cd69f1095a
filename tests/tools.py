"""Programs that tests use if they are installed, or fetched by `make tools`."""

import os
import shutil
import sys


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
