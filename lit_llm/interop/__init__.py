"""This room reads and writes model folders: our own, those of Hugging Face transformers, adapters and GGUF files."""

from lit_llm.interop.folder import (
    delete_model,
    describe_model,
    iterate_weights,
    load_model_folder,
    load_weights,
    read_model_config,
    read_quantization,
    save_model_folder,
    why_remote_code,
    without_value_head,
)
from lit_llm.interop.generation_settings import (
    GenerationSettings,
    ends_of,
    generation_settings,
    read_generation_config,
    stop_token_ids,
)
from lit_llm.interop.gguf_reading.container import gguf_license, is_gguf
from lit_llm.interop.in_memory import decoder_from_transformers
from lit_llm.interop.limits import export_limits
from lit_llm.interop.peft import (
    load_adapter,
    load_tokenizer,
    model_files,
    read_adapter,
    save_adapter,
    starting_adapter,
)

__all__ = [
    "GenerationSettings",
    "decoder_from_transformers",
    "delete_model",
    "describe_model",
    "ends_of",
    "export_limits",
    "generation_settings",
    "gguf_license",
    "is_gguf",
    "iterate_weights",
    "load_adapter",
    "load_model_folder",
    "load_tokenizer",
    "load_weights",
    "model_files",
    "read_adapter",
    "read_generation_config",
    "read_model_config",
    "read_quantization",
    "save_adapter",
    "save_model_folder",
    "starting_adapter",
    "stop_token_ids",
    "why_remote_code",
    "without_value_head",
]
