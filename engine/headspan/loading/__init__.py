"""Feed a store's numbers to training loops: PyTorch datasets, and WebDataset pipelines that join them to the images."""
