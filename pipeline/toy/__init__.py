"""The embedded toy: a small world and a tiny chat model trained on it. Both run without a GPU or a hub."""
