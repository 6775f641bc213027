"""The demonstration: every stage on the Python standard library's source. Nothing else of the package needs it."""
