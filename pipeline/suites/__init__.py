"""What `evaluate` puts every arm through, one folder per suite: its configuration section, its rows, its recipe."""

VANILLA = "vanilla"  # the arm that is the base model itself
