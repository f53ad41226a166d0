"""Write WebDataset tars: from data sets, tables and iterables of images."""
