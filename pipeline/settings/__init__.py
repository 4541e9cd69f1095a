"""What every section of the configuration builds on, and reading it from YAML."""
