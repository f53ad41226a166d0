"""Descriptions as analyses return them and stores keep them."""
