"""The two files of an adapter folder of Hugging Face PEFT, each read and checked by itself.

Source: PEFT 0.21, `peft/tuners/lora`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lit_llm.config import UserError
from lit_llm.interop.json_files import read_object
from lit_llm.interop.reading import check_finite

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_NAMES = """
auto_mapping base_model_name_or_path revision inference_mode peft_version peft_type task_type
r lora_alpha lora_dropout use_rslora use_dora bias init_lora_weights modules_to_save
target_modules exclude_modules layers_to_transform layers_pattern
megatron_core loftq_config eva_config runtime_config qalora_group_size ensure_weight_tying
"""
_KNOWN = frozenset(_NAMES.split())
"""The keys that are read, or that only say how the adapter was made or which layers it has (the weights show those)."""
_FIRST_VALUES = (True, False, "gaussian", "eva", "orthogonal")
"""The kinds of initial values that leave the base's weights as they are."""


def read_values(folder: Path) -> dict[str, Any]:
    """Read the options of an adapter folder.

    Raises:
        UserError: they cannot be read.
    """
    path = folder / CONFIG
    try:
        return read_object(path)
    except OSError as error:
        raise UserError(f"{folder} is not an adapter folder: {CONFIG} cannot be read ({error.strerror})") from error


def delete_adapter(folder: Path) -> None:
    """Delete the adapter of a folder that has become a model's: transformers would add it to that model.

    Raises:
        OSError: a file cannot be deleted.
    """
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def check_values(path: Path, values: dict[str, Any]) -> None:
    """Refuse options that would change the result and are not computed here.

    Args:
        path: their file, for errors.
        values: what it holds.

    Raises:
        UserError: there is such an option.
    """
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path} has peft_type {kind!r}; only LORA can be read")
    if values.get("task_type") not in ("CAUSAL_LM", "SEQ_CLS", None):
        raise UserError(f"{path} has task_type {values['task_type']!r}; only CAUSAL_LM and SEQ_CLS can be read")
    if values.get("bias", "none") != "none":
        raise UserError(f"{path} has bias {values['bias']!r}; only adapters that leave biases alone (none) can be read")
    if values.get("init_lora_weights", True) not in _FIRST_VALUES:
        raise UserError(
            f"{path} has init_lora_weights {values['init_lora_weights']!r}, which changes the base's weights; have "
            "PEFT save it as an ordinary adapter (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rank = values.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise UserError(f"{path} has no rank r")
    # an unknown option that is switched off changes nothing
    unknown = sorted(key for key, value in values.items() if value and key not in _KNOWN)
    if unknown:
        raise UserError(f"{path} has {unknown[0]} {values[unknown[0]]!r}, which is not supported; merge it with PEFT")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter folder, by PEFT's names.

    Raises:
        UserError: the file is missing, is a pickle, is broken, or has a number that is not finite.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise UserError(
                f"{folder} has its weights as a pickle only (adapter_model.bin), which could run any code and is not "
                "read; load it with PEFT where you trust it, and save it again"
            )
        raise UserError(f"{folder} has no {WEIGHTS}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        check_finite(folder, name, tensor)
    return tensors
