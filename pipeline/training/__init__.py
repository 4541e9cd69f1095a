"""Training of LoRA adapters with TRL inside a Ray Train `TorchTrainer`.

Start at `arm.py`; one file per algorithm: `sft.py`, `dpo.py`.
"""
