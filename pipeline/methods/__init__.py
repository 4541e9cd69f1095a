"""The methods of `generate` and `mix`, one folder each: configuration section, recipe, prompts."""
