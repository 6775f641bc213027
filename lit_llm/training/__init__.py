"""How a module is trained: the Lightning Trainer, callbacks, checkpoints and exact resume."""
