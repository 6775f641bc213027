"""Direct preference optimization: align a model with preferences, without a reward model."""

from __future__ import annotations

from contextlib import nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lit_llm.config import DPOConfig, UserError
from lit_llm.config.files import whole_file
from lit_llm.config.progress import track
from lit_llm.data.conversations.preferences import PreferenceDataModule
from lit_llm.distributed.ranks import data_parallel_rank
from lit_llm.interop import model_files, read_model_config
from lit_llm.model import Decoder, TokenLogProbs, token_log_probs
from lit_llm.model.lora import adapters_off, rounded_base
from lit_llm.modules.base import LanguageModule
from lit_llm.objectives import IGNORE_INDEX, PreferenceLoss, sequence_log_probs, tail_weights
from lit_llm.planning import training_flops_per_token


class DPOModule(LanguageModule):
    """DPO and its family, on the log-probabilities of the two answers of a pair.

    Args:
        config: the run.
        data: gives the pairs; the reference's log-probabilities are computed for all of them at the start.

    Raises:
        UserError: the reference cannot say how probable the tokens of this model are.
    """

    metric_names: ClassVar[tuple[str, ...]] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
        "logps/chosen_drift",
        "entropy",
        "completion_length",
    )
    progress_curves = (
        *LanguageModule.progress_curves,
        ("rewards/margins", "margin", ".3f"),
        ("rewards/accuracies", "accuracy", ".1%"),
        ("val/rewards/margins", "val margin", ".3f"),
        ("val/rewards/accuracies", "val accuracy", ".1%"),
    )
    counts_tokens: ClassVar[bool] = False
    config: DPOConfig

    def __init__(self, config: DPOConfig, data: PreferenceDataModule) -> None:
        super().__init__(config)
        self.loss = PreferenceLoss(config.loss, config.beta, config.label_smoothing, config.simpo_gamma)
        self.data = data
        self._frozen: list[Decoder] = []  # in a list, it is no submodule
        self._table: dict[str, Tensor] = {}  # reference log-probabilities by split, [pairs, 2]
        if self.loss.needs_reference and config.reference != "base":
            self._check_reference()

    @property
    def _reference_folder(self) -> Path:
        return Path(str(self.config.reference_model or self.config.init_from))

    def _check_reference(self) -> None:
        reference, wanted = read_model_config(self._reference_folder), self.config.model.vocab_size or 0
        # what the policy starts from grows as the policy itself has grown
        grows = str(self._reference_folder) == self.config.init_from and (reference.vocab_size or 0) < wanted
        if reference.output != "tokens" or not (grows or reference.vocab_size in (wanted, None)):
            raise UserError(
                f"the reference {self._reference_folder} is not a language model of {wanted} tokens (it has "
                f"{reference.vocab_size}): it cannot judge this policy's answers; give reference_model a folder with "
                "the same tokenizer"
            )
        length = self.config.data.length
        if reference.max_position_embeddings < length:
            raise UserError(
                f"the reference {self._reference_folder} has {reference.max_position_embeddings} positions, fewer than "
                f"data.sequence_length {length}; lower it, or give reference_model another folder"
            )

    def _new_reference(self) -> Decoder:
        reference = self.frozen(self._reference_folder, self.config.model.vocab_size or 0)
        if self._rounds_reference:
            reference.load_state_dict(rounded_base(reference.state_dict(), self.lora))
        return reference

    @property
    def _rounds_reference(self) -> bool:
        """Whether the reference is what the policy starts from, whose weights lora.quantize_base rounds."""
        return self.config.reference_model is None and self.lora.active and self.lora.quantize_base != "none"

    def on_fit_start(self) -> None:
        """Load the reference, or compute its log-probabilities of all pairs."""
        if not self.loss.needs_reference or self.config.reference == "base":
            return
        if self.config.reference == "live":
            self._frozen = [self._new_reference()]
            return
        self._table = {split: self._log_probs_of(split).to(self.device) for split in ("train", "validation")}
        self._frozen = []

    def token_loss(self, batch: dict[str, Tensor], training: bool) -> tuple[Tensor, Tensor]:
        """Sum the loss over pairs and count them; `tokens` [2b, t] hold the chosen texts, then the rejected ones."""
        real = batch["sample_ids"] >= 0
        mask = batch["targets"] != IGNORE_INDEX
        # the entropy is for the curves alone, and a tenth of the head's work
        log_probs, entropy, _ = self._token_log_probs(self.model, batch, with_entropy=self.logs or not training)
        plain, tokens = sequence_log_probs(log_probs, mask)
        sums = self._sums(log_probs, mask)
        reference = self._reference(batch, "train" if training else "validation")
        arguments = (*sums.chunk(2), *reference, *tokens.chunk(2))
        losses = self.loss(*arguments)
        if self.config.sft_weight and training:
            losses = losses - self.config.sft_weight * (plain / tokens.clamp(min=1)).chunk(2)[0]
        self._note(arguments, plain.detach(), mask.sum(), real, training)
        if entropy is not None:
            self.note({"entropy": (entropy.sum(), mask.sum())}, training)
        return torch.where(real, losses, 0.0).sum(), real.sum()

    def tokens_of(self, batch: dict[str, Tensor]) -> int:
        """Count the tokens that are not padding."""
        return int(batch["lengths"].sum())

    def flops_per_token(self) -> float:
        """Count those of the policy, and of the forward pass of a reference that reads each batch as well."""
        policy = training_flops_per_token(self.config.model, self.config.data.length, frozen=self.lora.active)
        if not self.loss.needs_reference or self.config.reference == "precomputed":
            return policy
        # of a whole step the forward pass is a third
        return policy + training_flops_per_token(self.config.model, self.config.data.length) / 3

    def _note(
        self,
        arguments: tuple[Tensor | None, ...],
        plain: Tensor,
        supervised: Tensor,
        real: Tensor,
        training: bool,
    ) -> None:
        chosen, rejected = self.loss.implicit_rewards(*arguments)
        logps_chosen, logps_rejected = plain.chunk(2)
        count = real.sum()
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float() + 0.5 * (chosen == rejected),
            "rewards/margins": chosen - rejected,
            "logps/chosen": logps_chosen,
            "logps/rejected": logps_rejected,
        }
        if arguments[2] is not None:
            values["logps/chosen_drift"] = chosen / self.config.beta  # below 0: the chosen answer is being forgotten
        sums = {name: (torch.where(real, value, 0.0).sum(), count) for name, value in values.items()}
        self.note({**sums, "completion_length": (supervised, 2 * count)}, training)

    def _token_log_probs(self, model: Decoder, batch: dict[str, Tensor], with_entropy: bool = False) -> TokenLogProbs:
        """Of the targets [2b, t]."""
        chunk_tokens = self.config.loss_chunk(batch["tokens"].device.type)
        return token_log_probs(
            model, batch["tokens"], batch["targets"], chunk_tokens=chunk_tokens, with_entropy=with_entropy
        )

    def _sums(self, log_probs: Tensor, mask: Tensor) -> Tensor:
        """Sum the log-probability of each answer [2b]; a longer answer's tail is discounted by `ld_alpha`."""
        if self.config.ld_alpha < 1.0:
            log_probs = log_probs * torch.cat(tail_weights(*mask.chunk(2), self.config.ld_alpha))
        return sequence_log_probs(log_probs, mask)[0]

    @torch.no_grad()
    def _reference(self, batch: dict[str, Tensor], split: str) -> tuple[Tensor | None, Tensor | None]:
        """Give the log-probabilities of the chosen and the rejected answers [b] under the reference."""
        if not self.loss.needs_reference:
            return None, None
        if self.config.reference == "precomputed":
            chosen, rejected = self._table[split][batch["row_ids"]].unbind(1)
            return chosen, rejected
        base = self.config.reference == "base"
        model = self.model if base else self._frozen[0]
        was_training = model.training
        model.eval()
        with adapters_off(model) if base else nullcontext():
            log_probs = self._token_log_probs(model, batch).log_probs
        model.train(was_training)
        chosen, rejected = self._sums(log_probs, batch["targets"] != IGNORE_INDEX).chunk(2)
        return chosen, rejected

    @torch.no_grad()
    def _log_probs_of(self, split: str) -> Tensor:
        """Compute the reference's log-probabilities of all pairs of a split [pairs, 2], or read them from the disk.

        They are kept there under the digest of everything that they depend on.
        """
        pairs = len(self.data.items(split))
        if not pairs:
            return torch.zeros(0, 2)
        kept = None
        if self._trainer is None or self.trainer.is_global_zero:
            kept = Path(self.config.output_root) / "reference_log_probs" / f"{self._digest(split)}.safetensors"
        found = _read(kept, pairs) if kept is not None else None
        if self._trainer is not None:  # ranks that saw different files would wait for each other for ever
            found = self.trainer.strategy.broadcast(found)
        if found is not None:
            return found
        if not self._frozen:
            self._frozen = [self._new_reference()]
        rank, shares = (0, 1) if self._trainer is None else data_parallel_rank(self.trainer)
        loader = self.data.make_evaluation_loader(split, rank, shares)
        table = torch.zeros(pairs, 2, device=self.device)
        context = nullcontext() if self._trainer is None else self.trainer.precision_plugin.forward_context()
        with context:
            for batch in track(loader, f"log-probabilities of the reference, {split} pairs", unit="batches"):
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                log_probs = self._token_log_probs(self._frozen[0], batch).log_probs
                sums = self._sums(log_probs, batch["targets"] != IGNORE_INDEX)
                real = batch["row_ids"] >= 0
                table[batch["row_ids"][real]] = torch.stack(sums.chunk(2), dim=1)[real]
        if shares > 1:
            copies = self.trainer.world_size // shares
            table = self.trainer.strategy.reduce(table, reduce_op="sum") / copies
        if kept is not None:
            _write(kept, table.cpu())
        return table

    def _digest(self, split: str) -> str:
        """Hash everything that the reference's log-probabilities depend on, as hexadecimal text."""
        digest = blake2b(digest_size=16)
        for path in model_files(self._reference_folder):
            with path.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
        config = self.config
        about = (self.data.items(split).digest, config.ld_alpha, config.trainer.precision, config.model.vocab_size)
        digest.update(repr(about).encode())
        if self._rounds_reference:
            digest.update(repr((self.lora.quantize_base, self.lora.projections)).encode())
        return digest.hexdigest()


def _read(path: Path, pairs: int) -> Tensor | None:
    """Read a kept table of log-probabilities [pairs, 2]; None where there is none, or it is damaged."""
    try:
        table = safetensors.torch.load_file(path)["log_probs"]
    except (OSError, SafetensorError, KeyError):
        return None
    return table if table.shape == (pairs, 2) else None


def _write(path: Path, table: Tensor) -> None:
    """Keep a table of log-probabilities, whole or not at all; several runs may write the same one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, shared=True) as partial:
            safetensors.torch.save_file({"log_probs": table.contiguous()}, partial)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
