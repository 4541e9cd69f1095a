"""Learn from setbacks: induce mistakes, analyze them, fine-tune on the analyses, evaluate.

Start at `experiment.py`.
"""

import logging

# PEFT imports it if it is installed, and it then warns that it has fetched no kernel from the hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
