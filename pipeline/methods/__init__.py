"""What `generate` and `mix` do, one folder per method: its configuration section, its recipe, its prompts."""
