"""How a store is created and filled, unit by unit."""
