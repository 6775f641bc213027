"""What pretraining reads: windows of the token stream in shards."""
