"""Everything about ranks: which one this process is, its part of a tensor, and how ranks exchange values."""
