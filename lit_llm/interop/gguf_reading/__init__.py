"""One GGUF file, as llama.cpp reads it, in place of a model folder."""
