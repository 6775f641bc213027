"""The decoder of a training stage: how it gets its weights, lies over devices, and comes out of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_llm.config import (
    CONFIG_KEY,
    LoraConfig,
    ModelConfig,
    PostTrainingConfig,
    RunConfig,
    UserError,
    from_plain,
    to_plain,
)
from lit_llm.interop import read_model_config, starting_adapter, without_value_head
from lit_llm.model import Decoder
from lit_llm.model.initialization import initialize_weights
from lit_llm.model.lora import add_lora, is_adapter, merged_state, prepare_dora, quantize_base
from lit_llm.model.parallel import arrange
from lit_llm.modules.weights import copy_into, copy_weights, digest_of_parts

BASE_KEY = "lora_base"
"""The key of a checkpoint with `digest_of_parts` of the model that its adapter was trained over."""


class DecoderModule(L.LightningModule):
    """A decoder with the weights that a run begins with, adapters included.

    Args:
        config: the run; `config.model.vocab_size` must be set.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.lora = config.lora if isinstance(config, PostTrainingConfig) else LoraConfig()
        self.model = self.new_decoder(config.model, self.lora)
        if self.lora.active:
            self.strict_loading = False  # a checkpoint holds what is trained; the rest is in `init_from`
        self._arranged = False
        self._base_digest: str | None = None
        self.resumes = False  # set where a checkpoint is about to replace what is trained, before the Trainer starts
        if not self.sharded:
            self._load_weights()

    @property
    def sharded(self) -> bool:
        """Whether the weights get their memory in `configure_model` only, one shard on each rank."""
        return self.config.trainer.strategy == "fsdp"

    def new_decoder(self, model: ModelConfig, lora: LoraConfig | None = None) -> Decoder:
        """Make a decoder with initial weights in the run's precision; one that will be sharded has no memory yet."""
        with torch.device("meta") if self.sharded else nullcontext():
            decoder = Decoder(model, seed=None)
        self._draw(decoder, from_folder=self.config.init_from is not None)
        if self.config.trainer.precision == "bf16-true":
            decoder.to(torch.bfloat16)
        if lora is not None and lora.active:  # in float32 in any case: their updates are small
            add_lora(decoder, lora, self.config.seed)
        return decoder

    def _draw(self, decoder: Decoder, from_folder: bool) -> None:
        """Draw initial weights; `from_folder`: only those that no model folder has, as the heads of another stage."""

        def is_new(name: str) -> bool:
            scores = name.startswith("value_head.") or (name.startswith("head.") and decoder.config.output == "score")
            return scores or is_adapter(name)

        initialize_weights(decoder, decoder.config, self.config.seed, is_new if from_folder else None)

    def _load_weights(self) -> None:
        """Start from the model folder `config.init_from`, and from an adapter, where they are given."""
        if self.config.init_from is not None:
            copy_weights(Path(self.config.init_from), self.model)
        if not self.lora.active:
            return
        if self.config.init_from is not None:
            self._base_digest = digest_of_parts(Path(self.config.init_from))
        quantize_base(self.model, self.lora.quantize_base)
        prepare_dora(self.model)
        if self.lora.adapter is not None:
            copy_into(starting_adapter(self.lora, self.config.model)[1].items(), self.model)

    def configure_model(self) -> None:
        """Lay the decoder out over the strategy's devices, and give shards their memory and first values."""
        if self._arranged:  # Lightning calls this for a test that follows the training, too
            return
        self._arranged = True
        replaced = self.resumes and not self.lora.active
        if self.lay_out(self.model, replaced) and not replaced:
            self._load_weights()

    def lay_out(self, decoder: Decoder, replaced: bool = False) -> bool:
        """Lay a decoder out over the strategy's devices; returns whether its weights have been made anew for that.

        Args:
            decoder: its weights, where they are made anew, have their initial values, but for those that a model folder
                will replace.
            replaced: whether a checkpoint will replace all of them, so that none need be drawn.
        """
        arrange(decoder, self.config.trainer, self.device_mesh)
        if self.device_mesh is None:
            return False
        decoder.to_empty(device="cpu" if self.config.trainer.offload else self.trainer.strategy.root_device)
        decoder.tie()
        if not replaced:
            self._draw(decoder, from_folder=self.config.init_from is not None)
        return True

    def frozen(self, folder: Path, vocab_size: int = 0) -> Decoder:
        """Load a model that is only read, such as a reference, laid out over the devices like the trained one.

        It must not become a submodule, so that no checkpoint holds it.

        Call it once the strategy is set up.

        Args:
            folder: model folder.
            vocab_size: tokens that it must know; a smaller vocabulary grows as that of a trained model does.
        """
        config = read_model_config(folder)
        config.dropout, config.attention_dropout = 0.0, None
        config.vocab_size = max(config.vocab_size or 0, vocab_size)
        decoder = self.new_decoder(config)
        if not self.sharded:
            copy_weights(folder, decoder)
        if self.lay_out(decoder):
            copy_weights(folder, decoder)
        elif not self.sharded:
            decoder.to(self.device)
        return decoder.requires_grad_(False).eval()

    def finished(self, weights: Mapping[str, Tensor]) -> tuple[ModelConfig, Mapping[str, Tensor]]:
        """Give what goes into the model folder of the run: a plain decoder, with its adapters merged.

        Args:
            weights: the state_dict of `model`, whole.
        """
        if self.lora.active:
            weights = merged_state(weights, self.lora)
        return without_value_head(self.config.model, weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration with the weights, as a plain dict; with adapters, only the trained weights."""
        checkpoint[CONFIG_KEY] = to_plain(self.config)
        if self.lora.active:
            weights = checkpoint["state_dict"]  # empty on the ranks that do not write
            checkpoint["state_dict"] = {name: weights[name] for name in weights if name in self._trained_names}
            checkpoint[BASE_KEY] = self._base_digest

    @property
    def _trained_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            UserError: the checkpoint was made with other model options, which the message names, or its adapter over
                other weights, and `resume_changed` is false.
        """
        saved = from_plain(ModelConfig, checkpoint.get(CONFIG_KEY, {}).get("model", {}))
        wanted, found = to_plain(self.config.model), to_plain(saved)
        # dropout may be changed midway: it has no weights
        free = ("dropout", "attention_dropout")
        changed = [name for name in wanted if wanted[name] != found[name] and name not in free]
        if changed:
            pairs = ", ".join(f"{name} {found[name]} (this run: {wanted[name]})" for name in changed)
            raise UserError(f"the checkpoint is of another model: it has {pairs}")
        lora = from_plain(LoraConfig, checkpoint.get(CONFIG_KEY, {}).get("lora", {}))
        for name in ("rank", "alpha", "targets", "rslora", "dora", "quantize_base"):
            theirs, ours = (getattr(each, "projections" if name == "targets" else name) for each in (lora, self.lora))
            if theirs != ours:
                raise UserError(
                    f"the checkpoint is of another adapter: its lora.{name} is {theirs} (this run: {ours}); put lora "
                    "back as it was"
                )
        if checkpoint.get(BASE_KEY, self._base_digest) != self._base_digest and not self.config.resume_changed:
            raise UserError(
                f"the weights of {self.config.init_from} are not those that the checkpoint's adapter was trained over; "
                "put them back, or --resume_changed true goes on over these"
            )
