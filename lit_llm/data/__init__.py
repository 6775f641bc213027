"""From text to batches: corpora, shards, order, windows, loaders. Import the submodules; this file imports nothing."""
