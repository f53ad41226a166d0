"""Export a store to the files of other tools: Parquet, NumPy, safetensors and CSV."""
