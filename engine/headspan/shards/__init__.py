"""Plan a run: expand shard names, read tars, join members to samples, assign rows and units."""
