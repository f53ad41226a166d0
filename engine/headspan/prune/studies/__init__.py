"""Studies of what tasks lose without heads, and their statistics."""
