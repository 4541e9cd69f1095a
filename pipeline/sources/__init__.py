"""Instructions from files, object stores, the hub or the toy world, as rows of one schema."""
