"""From a recipe to a corpus: sources are read in parallel, documents go through the steps, each result is kept."""
