"""The base of all configuration sections, and the YAML reader."""
