"""lit_llm: from raw text to a trained language model, in PyTorch Lightning.

This file imports nothing, so that `--help` and a mistyped option answer at once.
"""
