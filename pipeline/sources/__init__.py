"""Instructions from anywhere: files, object stores, the hub, the toy, as rows of one schema."""
