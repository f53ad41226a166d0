"""Videos as shards of frames."""
