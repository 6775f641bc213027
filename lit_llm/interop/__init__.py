"""Model folders in and out."""

from lit_llm.interop.folder import load_model_folder, load_weights, read_model_config, save_model_folder

__all__ = ["load_model_folder", "load_weights", "read_model_config", "save_model_folder"]
