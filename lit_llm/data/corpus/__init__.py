"""From sources to shards: documents in splits, encoded and written once."""
