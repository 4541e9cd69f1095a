"""The whole main path with the real engine and trainer, on two machines that share nothing but an object
store."""

import json

import pyarrow.parquet as pq
import pytest

from tests.cluster.conftest import BUCKET, download
from tests.cluster.machines import setbacks

RUN = f"s3://{BUCKET}/runs/whole"
CONFIG = f"""
run_dir: {RUN}
model: {{path: toy, dtype: float32}}
engine: {{rows_per_commit: 16, max_num_seqs: 32}}
methods:
  mistakes:
    name: mistake_analysis
    instructions: {{path: "toy:harmful-train", limit: 40}}
    induce: {{max_tokens: 32}}
    analyse: {{max_tokens: 48}}
    mix: {{helpful: {{path: "toy:helpful-train", limit: 30}}}}
train: {{epochs: 1, learning_rate: 5.0e-4, batch_size: 4, max_length: 512, bf16: false, workers: 2}}
arms: {{mistake_analysis: {{kinds: [safe, helpful, analysis]}}}}
suites:
  safety:
    harmful: {{path: "toy:harmful-heldout", limit: 8}}
    helpful: {{path: "toy:helpful-heldout", limit: 4}}
    answer: {{max_tokens: 32}}
    help: {{draw: {{max_tokens: 32, temperature: 0}}}}
"""


@pytest.mark.timeout(600)
def test_the_main_path_on_two_machines_and_s3(network, workers, tmp_path):
    workers(2)
    (tmp_path / "config.yaml").write_text(CONFIG)
    code, said = network.head.run(*setbacks("run", str(tmp_path / "config.yaml")), seconds=500)
    assert code == 0 and f"report: {RUN}/report.html" in said, said
    code, status = network.head.run(*setbacks("status", RUN, "--json"))
    assert {output["state"] for output in json.loads(status[status.index("{") :])["outputs"]} == {"complete"}
    code, shown = network.head.run(*setbacks("show", f"{RUN}/mistakes", "-n", "1"))
    assert code == 0 and "▒▒▒▒ (" in shown, shown

    from peft import PeftConfig

    here = download(network, RUN, tmp_path / "run")
    rows = {
        name: sum(pq.read_metadata(file).num_rows for file in (here / name).glob("*.parquet"))
        for name in ("mistakes", "sft", "evaluation")
    }
    assert rows["mistakes"] == 40 and rows["sft"] > 60 and rows["evaluation"] == 2 * (3 * 8 + 2 * 4), rows
    assert PeftConfig.from_pretrained(str(here / "adapter/mistake_analysis")).r == 16
    assert "vanilla" in (here / "report.md").read_text() and (here / "mistakes/README.md").exists()
