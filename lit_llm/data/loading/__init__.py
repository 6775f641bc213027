"""Which sample is read when, by which rank, and how a run goes on from any of them; the same for every stage."""
