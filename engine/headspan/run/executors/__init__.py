"""Executors hand the units of a run to the processes that compute them."""
