"""What runs inside of a sandbox: the standard library alone, in an interpreter of its own, without this package."""
