"""Images of a store, read again from the shards that they came from."""
