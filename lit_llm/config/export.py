"""How a checkpoint or a model folder becomes another model folder."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_llm.config.errors import UserError


@dataclass
class ExportConfig:
    """Turn a checkpoint of a run (in one file or sharded), or a model folder, into a model folder."""

    checkpoint: str = "checkpoints/pretrain"
    """A checkpoint; a run folder: its newest whole checkpoint; a model folder, ours or Hugging Face's; a GGUF file."""
    output: str = "checkpoints/exported"
    """Folder to write; for gguf, onnx and torch_export a file *.gguf, *.onnx or *.pt2, or a folder to write model.*
    in."""
    tokenizer: str | None = None
    """Folder of the tokenizer; null: the one of the data that the run was trained on, or of the model folder."""
    overwrite: bool = False
    """Replace a model that is already there."""
    format: Literal["auto", "huggingface", "lit_llm", "gguf", "ollama", "onnx", "torch_export"] = "auto"
    """What transformers loads (huggingface: architectures that it lacks with trust_remote_code=True, by code in the
    folder), our own form (lit_llm), the first of the two that there is (auto), one file for llama.cpp (gguf: Llama
    form only), a folder of that file and a Modelfile (ollama), or one program with its cache as inputs and outputs
    (onnx for ONNX Runtime, torch_export for torch.export.load)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"
    """Type of the weights; auto keeps them as they are; q8_0 is 8 bits in blocks of 32, for gguf and ollama alone."""
    quantize: Literal["none", "int8", "int8_dynamic", "int4"] = "none"
    """Round the weights to 8 or 4 bits and say what that costs in quality; for this package alone, in our own form."""
    quality_text: str | None = None
    """Text file to measure the loss of quality on (its first 512 tokens); null: the validation text of the run, or else
    a short built-in text."""
    calibration_text: str | None = None
    """Text file by which weights are rounded to int4 so that what the model makes of such text changes least (GPTQ; its
    first 16,384 tokens); null: to the nearest number. Not the quality_text, which would look better than it is."""
    lora: Literal["merged", "adapter"] = "merged"
    """A run with lora: a model whose weights have the additions in them, or the additions alone as PEFT reads them."""
    max_shard_size: str = "5GB"
    """A larger model folder has its weights in several files of this size at most, such as 500MB or 2GiB."""
    license: str | None = None
    """License that the model card, or the GGUF file, names, as apache-2.0; null: that of the model folder it is made
    from, if any."""
    push_to_hub: str | None = None
    """Upload what was written to the Hugging Face Hub, as USER/NAME (needs a token: hf auth login, or HF_TOKEN)."""
    private: bool = False
    """Let nobody else see what push_to_hub uploads, where it makes a new repository."""

    def __post_init__(self) -> None:
        if self.max_shard_bytes < 1:
            raise UserError(f"max_shard_size is {self.max_shard_size!r}; give a size such as 5GB or 500MB")
        self._check_single_file()
        if self.dtype == "q8_0" and self.format not in ("gguf", "ollama"):
            raise UserError(f"dtype q8_0 is for format gguf alone, or ollama, not {self.format}")
        if self.dtype == "bfloat16" and self.format == "onnx":
            raise UserError("ONNX Runtime computes no bfloat16 on a CPU; give dtype float32 or float16")
        if self.quantize not in ("none", "int8", "int8_dynamic", "int4"):
            raise UserError(f"quantize is {self.quantize!r}; it must be none, int8, int8_dynamic or int4")
        if self.quantize != "none" and self.format not in ("auto", "lit_llm"):
            raise UserError(f"quantize {self.quantize} is in our own form alone; leave format at auto, or give lit_llm")
        if self.quality_text is not None and self.quantize == "none":
            raise UserError("quality_text is given, but quantize is none: there is no loss of quality to measure")
        if self.calibration_text is not None and self.quantize != "int4":
            raise UserError(f"calibration_text is for quantize int4 alone, not {self.quantize}")
        if self.calibration_text is not None and self.calibration_text == self.quality_text:
            raise UserError("calibration_text is the quality_text, too; measure on a text that is not calibrated on")
        if self.private and self.push_to_hub is None:
            raise UserError("private has no effect without push_to_hub; give push_to_hub USER/NAME, too")
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.\-]+/[\w.\-]+", self.push_to_hub):
            raise UserError(f"push_to_hub is {self.push_to_hub!r}; it must be a name as USER/NAME")
        if self.lora not in ("merged", "adapter"):
            raise UserError(f"lora is {self.lora!r}; it must be merged or adapter")
        if self.lora == "adapter":
            for name in ("format", "dtype", "quantize", "max_shard_size"):
                given = getattr(self, name)
                if given != getattr(ExportConfig, name):
                    raise UserError(f"{name} {given} has no effect on an adapter; leave it out, or lora merged")

    def _check_single_file(self) -> None:
        """Refuse options that one file which holds the whole model would ignore."""
        if self.file is None:
            return
        if self.max_shard_size != ExportConfig.max_shard_size:
            raise UserError(f"max_shard_size has no effect on format {self.format}, which is one file; leave it out")
        if self.license is not None and self.file.suffix != ".gguf" and self.file == Path(self.output):
            raise UserError(
                f"license has no effect: {self.output} cannot name one; give output a folder, whose model card does"
            )

    @property
    def file(self) -> Path | None:
        """The one file that is written, which holds the whole model; None for a model folder."""
        suffix = {"gguf": ".gguf", "ollama": ".gguf", "onnx": ".onnx", "torch_export": ".pt2"}.get(self.format)
        if suffix is None:
            return None
        output = Path(self.output)
        return output if output.suffix == suffix and self.format != "ollama" else output / f"model{suffix}"

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` as a number, 0 where it is no size."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kKMGT])(i?))?B?", self.max_shard_size)
        if match is None:
            return 0
        exponent = " KMGT".index((match.group(2) or " ").upper())
        return math.floor(float(match.group(1)) * (1024 if match.group(3) else 1000) ** exponent)
