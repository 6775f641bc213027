"""Duplicates across a whole corpus: exact documents, exact lines, near-duplicates. All use one bounded sorted index."""
