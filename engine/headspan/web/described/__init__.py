"""Descriptions of classes as the explorer shows them."""
