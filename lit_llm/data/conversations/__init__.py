"""What the stages after pretraining read: rows as conversations, preferences and prompts, rendered and batched."""
