"""What the driver does for training needs no trainer: TRL, whose import takes seconds, is the workers' affair."""

import pytest

from tests import tiny
from tests.unit.exploits import run_python

DRIVER = """
import sys
from pipeline.training import arm, methods
from tests import tiny
model, method, data = sys.argv[1:]
config = tiny.config(model, method=method)
arm.check_lora(config, model)
tables, counts, runs = methods.of(config.train).prepare(tiny.tokenizer(), data, config, method)
assert runs[0].items and counts.kinds.total()
print([name for name in ("trl", "vllm", "ray.data") if name in sys.modules])
"""


@pytest.mark.parametrize("method, write, rows", [
    ("sft", tiny.write, tiny.rows(12)),
    ("dpo", tiny.write_preferences, tiny.preferences(2)),
])  # fmt: skip
def test_the_driver_imports_no_trainer(tmp_path, method, write, rows):
    model = tiny.save(tmp_path / "model")
    write(tmp_path / "data", rows)
    assert run_python(DRIVER, model, method, tmp_path / "data").strip() == "[]"
