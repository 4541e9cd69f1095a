"""The suites that `evaluate` runs on every arm, one folder each: configuration section, rows, recipe."""

VANILLA = "vanilla"  # the arm that is the base model itself
