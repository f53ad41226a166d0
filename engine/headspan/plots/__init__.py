"""Plots of results with matplotlib, and the colours and levels that they share with the report."""
