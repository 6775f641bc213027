"""The files that a model folder carries so that transformers loads an architecture of ours: see `modeling_lit_llm.py`.

They are copied as they stand: they import each other, torch and transformers, and nothing of this package, which in
turn never runs the copies that a folder has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_llm.config import ModelConfig
from lit_llm.config.files import replace_file

FILES = ("configuration_lit_llm.py", "layers_lit_llm.py", "modeling_lit_llm.py")
"""The files, each beside this one."""


def remote_code_values(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json by which transformers finds the classes, with `trust_remote_code=True`."""
    classifier = "LitLLMForSequenceClassification"
    auto_map = {
        "AutoConfig": "configuration_lit_llm.LitLLMConfig",
        "AutoModel": "modeling_lit_llm.LitLLMModel",
        "AutoModelForSequenceClassification": f"modeling_lit_llm.{classifier}",
    }
    if config.output == "score":
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return {"architectures": [classifier], "auto_map": auto_map, **labels}
    language = "LitLLMForCausalLM"
    return {
        "architectures": [language],
        "auto_map": {**auto_map, "AutoModelForCausalLM": f"modeling_lit_llm.{language}"},
    }


def write_remote_code(folder: Path) -> None:
    """Copy the files into a model folder."""
    for name in FILES:
        replace_file(folder / name, Path(__file__).with_name(name).read_text(encoding="utf-8"))


def delete_remote_code(folder: Path) -> None:
    """Delete the files from a folder whose model needs them no more."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
