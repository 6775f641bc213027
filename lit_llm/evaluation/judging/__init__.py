"""Models compared by a judge that reads their answers."""
