"""Pools of texts and their vectors."""
