"""The shipped configurations in the YAML language server of editors, if it is installed (npm)."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SERVER = shutil.which("yaml-language-server")
SETTINGS = {"validate": True, "schemaStore": {"enable": False}}  # no schema is fetched

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(SERVER is None, reason="NOT TESTED: npm install -g yaml-language-server"),
]


def message(stream) -> dict:
    size = 0
    while (line := stream.readline()) != b"\r\n":
        assert line, "the server has ended"
        if line.lower().startswith(b"content-length:"):
            size = int(line.partition(b":")[2])
    return json.loads(stream.read(size))


def problems(files: list[Path]) -> dict[str, list[str]]:
    """File → what the server says about it."""
    server = subprocess.Popen([SERVER, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(**content):
        body = json.dumps({"jsonrpc": "2.0", **content}).encode()
        server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        server.stdin.flush()

    found: dict[str, list[str]] = {}
    names = {path.as_uri(): path.name for path in files}
    capabilities = {"textDocument": {"publishDiagnostics": {}}, "workspace": {"configuration": True}}
    try:
        asked = {"processId": None, "rootUri": None, "capabilities": capabilities}
        send(id=1, method="initialize", params=asked)
        end = time.monotonic() + 120
        while len(found) < len(files) and time.monotonic() < end:
            told = message(server.stdout)
            if told.get("id") == 1 and "result" in told:
                send(method="initialized", params={})
                for path in files:
                    document = {
                        "uri": path.as_uri(),
                        "languageId": "yaml",
                        "version": 1,
                        "text": path.read_text(),
                    }
                    send(method="textDocument/didOpen", params={"textDocument": document})
            elif told.get("method") == "workspace/configuration":
                items = told["params"]["items"]
                send(
                    id=told["id"],
                    result=[SETTINGS if one.get("section") == "yaml" else None for one in items],
                )
            elif told.get("method") == "textDocument/publishDiagnostics":
                name = names[told["params"]["uri"]]
                found[name] = [one["message"] for one in told["params"]["diagnostics"]]
            elif "method" in told and "id" in told:
                send(id=told["id"], result=None)
    finally:
        server.kill()
        server.wait()
    return found


def test_an_editor_finds_no_fault_in_a_shipped_configuration(tmp_path):
    text = CONFIGS[0].read_text().replace("../docs", str(ROOT / "docs"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("\nrun_dir:", "\nrundir: x\nrun_dir:"))
    found = problems([*CONFIGS, wrong])
    assert found.pop("wrong.yaml") == ["Property rundir is not allowed."]
    assert found == {path.name: [] for path in CONFIGS}
