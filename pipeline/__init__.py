"""Learn from setbacks: induce mistakes, analyze them, fine-tune on the analyses, evaluate.

Start at `experiment.py`.
"""

__version__ = "0.1.0"
