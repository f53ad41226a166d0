"""From shard names to a plan: URLs, bytes, tar members, samples, rows and units."""
