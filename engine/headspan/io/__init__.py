"""Reading and writing bytes: local files, network reads with retries, ranges of remote files."""
