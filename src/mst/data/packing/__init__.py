"""Writing images into shards: tar files as WebDataset lays them out, or parquet files."""
