"""The report: one HTML file that shows the results of a store."""
