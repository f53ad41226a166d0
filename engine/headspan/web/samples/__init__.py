"""The samples of a store for the explorer: filters, classes, categories and facets, in bounded memory."""
