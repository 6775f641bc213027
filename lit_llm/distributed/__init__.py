"""Which part of a tensor is this rank's, which rank this is, and how ranks talk: one place for all of it."""
