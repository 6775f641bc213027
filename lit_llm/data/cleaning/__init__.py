"""What documents go through between a source and a corpus: extraction, filters, duplicates, contamination."""
