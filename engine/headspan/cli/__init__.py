"""The command line; no other folder prints."""
