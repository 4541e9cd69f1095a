"""SeaweedFS, a real S3 server, from the wheel of the extra `test`."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ACCESS, SECRET = "testing", "testing"
REGION = "us-east-1"


def command(place: Path, address: str, port: int) -> list[str]:
    """The command of a server with its data in a directory. It uses the ten ports after this one, too, and
    theirs plus 10 000."""
    settings = place / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    settings.write_text(json.dumps({"identities": [identity]}))
    data = place / "data"
    data.mkdir(exist_ok=True)
    ports = {"s3": port, "master": port + 1, "volume": port + 2, "filer": port + 3}
    return [
        str(Path(sys.executable).parent / "weed"),
        "server",
        f"-dir={data}",
        f"-ip={address}",
        f"-ip.bind={address}",
        "-s3",
        f"-s3.ip.bind={address}",
        f"-s3.config={settings}",
        "-filer",
        "-volume.max=20",
        "-master.volumeSizeLimitMB=64",
        *(f"-{name}.port={number}" for name, number in ports.items()),
    ]


def environment(address: str, port: int) -> dict[str, str]:
    """The variables by which clients find the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def served(place: Path, port: int, address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """A running server; yields the variables by which clients find it."""
    with open(place / "weed.log", "wb") as log:
        server = subprocess.Popen(command(place, address, port), stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not _answers(f"http://{address}:{port}"):
            assert server.poll() is None and time.monotonic() < end, (place / "weed.log").read_text()[-2000:]
            time.sleep(0.2)
        yield environment(address, port)
    finally:
        server.kill()  # told to end, it waits for its own parts
        server.wait(20)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True  # without a key, it refuses
    except OSError:
        return False
    return True
