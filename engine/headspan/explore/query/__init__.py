"""One image as a query: its numbers, from a store or from the store's model."""
