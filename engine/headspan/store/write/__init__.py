"""Create a store, fill it unit by unit, and save the results of analyses in it."""
