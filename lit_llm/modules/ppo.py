"""Reinforcement learning on answers that the policy writes: PPO, and GRPO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_llm.config import PPOConfig, UserError, derived_seed
from lit_llm.distributed.gathering import gathered_once
from lit_llm.distributed.ranks import data_parallel_rank
from lit_llm.interop import read_model_config
from lit_llm.model import Decoder, hidden_log_probs
from lit_llm.model.initialization import named_generator
from lit_llm.model.lora import adapters_off, prepare_dora, quantize_base
from lit_llm.model.scores import token_scores
from lit_llm.modules.base import LanguageModule, StepMean
from lit_llm.modules.metrics import NamedMeans
from lit_llm.modules.policy_updates import ROUND_MEANS, UPDATE_MEANS, round_sums, set_advantages, update_loss
from lit_llm.modules.rewards import Rewards, check_same_tokens
from lit_llm.modules.rollout import (
    Answer,
    Experience,
    evaluating,
    write_answers,
)
from lit_llm.modules.weights import copy_weights
from lit_llm.objectives import AdaptiveKL, kl_estimate
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import ChatFormat

KL_KEY = "adaptive_kl"


class PPOModule(LanguageModule):
    """Learns from rounds: a batch of prompts is answered, the answers are scored, and several updates follow.

    A round is one step of the Trainer, whatever the number of its updates, so that checkpoints lie between rounds and
    hold no answers: a resumed run draws the same ones, because each answer's seed is made of the run's, the prompt's
    number and the step. With dropout 0 the first update of a round compares the policy with itself: all ratios are 1.

    With LoRA the policy trains additions, and so does the critic: of the same kind, and the whole of its head. The
    reference is then the policy without them, unless `reference_model` is given.

    Args:
        config: the run; `config.model.value_head` is set where learns_values_by is "head".
        tokenizer: the policy's; has chat tokens.

    Raises:
        UserError: a reward, the critic or the reference cannot be used with this policy.

    Source: Schulman et al. 2017 (PPO); Ziegler et al. 2019 (for language models); Shao et al. 2024 (GRPO). Curves
    have the names and meanings of TRL's.
    """

    metric_names: ClassVar[tuple[str, ...]] = (*ROUND_MEANS, *UPDATE_MEANS)
    progress_curves = (
        ("objective/scores", "reward", ".3f"),
        ("objective/kl", "KL", ".4f"),
        ("objective/response_length", "length", ".1f"),
        ("val/reward", "val reward", ".3f"),
        ("val/response_length", "val length", ".1f"),
    )
    counts_tokens: ClassVar[bool] = False
    replayable: ClassVar[bool] = False
    config: PPOConfig

    def __init__(self, config: PPOConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config)
        self.automatic_optimization = False
        self.tokenizer = tokenizer
        self.stop_ids = ChatFormat(tokenizer).stop_ids
        self.rewards = Rewards(config.rewards, config.reward_weights, tokenizer)
        self.kl_kind = config.kl_estimator or ("k1" if config.algorithm == "ppo" else "k3")
        self.kl_price = AdaptiveKL(config.kl_coefficient, config.kl_target, config.kl_horizon)
        self.critic: Decoder | None = None
        if config.algorithm == "ppo" and config.learns_values_by == "critic":
            self.critic = self._new_critic()
        self._check_folders()
        names = [f"rewards/{name}" for name in self.rewards.names]
        self.training_means = NamedMeans([*self.metric_names, *names])
        self.validation_means = NamedMeans(["reward", "response_length", "ended", *names])
        self._reference: list[Decoder] = []  # in a list, it is no submodule
        self._updates: list[tuple[float, float]] = []  # loss and gradient norm of each update of the round
        self._tokens_read = 0

    # The models.

    @property
    def trained(self) -> nn.Module:
        """The policy and, where there is one, the critic."""
        return nn.ModuleList(self._models)

    @property
    def _models(self) -> list[Decoder]:
        return [self.model] if self.critic is None else [self.model, self.critic]

    @property
    def _critic_folder(self) -> Path:
        config = self.config
        return Path(str(config.critic_from or next(iter(self.rewards.folders), config.init_from)))

    def _new_critic(self) -> Decoder:
        model = read_model_config(self._critic_folder).as_score()
        model.vocab_size = max(model.vocab_size or 0, self.config.model.vocab_size or 0)
        model.dropout, model.attention_dropout = self.config.dropout, None
        critic = self.new_decoder(model, self.lora)
        if not self.sharded:
            self._load_critic(critic)
        return critic

    def _load_critic(self, critic: Decoder) -> None:
        copy_weights(self._critic_folder, critic)
        if self.lora.active:
            quantize_base(critic, self.lora.quantize_base)
            prepare_dora(critic)

    def _check_folders(self) -> None:
        config = self.config
        if config.reference_model is not None:
            read_model_config(Path(config.reference_model)).check_gives_text(
                f"reference_model {config.reference_model}"
            )
        others = {"critic_from": config.critic_from, "reference_model": config.reference_model}
        for option, other in others.items():
            if other is not None:
                check_same_tokens(Path(other), self.tokenizer, option)
        for each in (*filter(None, others.values()), *self.rewards.folders):
            most = read_model_config(Path(each)).max_position_embeddings
            if most < config.data.length:
                raise UserError(
                    f"data.sequence_length {config.data.length} is more than the {most} positions of {each}"
                )

    def configure_model(self) -> None:
        """Lay policy and critic out over the devices; see `LanguageModule.configure_model`."""
        arranged = self._arranged
        super().configure_model()
        if self.critic is not None and not arranged and self.lay_out(self.critic):
            self._load_critic(self.critic)

    def on_fit_start(self) -> None:
        """Load the models that are only read: reward models and reference.

        Raises:
            UserError: a rank's answers cannot be divided into the updates.
        """
        config = self.config
        rows = config.data.batch_size // self.data_parallel_size * config.group_size
        if rows % config.minibatches:
            raise UserError(
                f"minibatches {config.minibatches} does not divide the {rows} answers of each device in a step "
                f"(data.batch_size {config.data.batch_size} x group_size {config.group_size} / "
                f"{self.data_parallel_size} devices)"
            )
        self.rewards.models = [self.frozen(folder) for folder in self.rewards.folders]
        if not self.lora.active or config.reference_model is not None:
            folder = Path(str(config.reference_model or config.init_from))
            self._reference = [self.frozen(folder, config.model.vocab_size or 0)]

    # A round.

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Run one round: answer a batch of prompts, and make all updates from the answers."""
        step = self.trainer.global_step + 1
        experience = self._collect(batch, step)
        optimizer = self.optimizers(use_pl_optimizer=False)
        minibatches = self._minibatches(experience, step)
        for number, minibatch in enumerate(minibatches, start=1):
            parts = minibatch.split(self.config.update_micro_batch_size)
            for part in parts:
                with self.kept_gradient(part is not parts[-1]):
                    loss_sum, sums = update_loss(part, *self._read(self.model, part), self.config)
                    self.note(sums, training=True)
                    self._parts.append((loss_sum.detach(), part.mask.sum()))
                    self.manual_backward(loss_sum / self.nominal_tokens)
            self.finish_gradient(optimizer, divisor=1)
            # Lightning counts a step for each update that it knows of
            known = self.optimizers() if number == len(minibatches) else optimizer
            with torch.autocast(self.device.type, enabled=False):
                known.step()
            optimizer.zero_grad()
        self._end_round(optimizer, step, experience)
        self.lr_schedulers().step()

    def _write(self, batch: dict[str, Any], answers_each: int, step: int | str) -> list[Answer]:
        """Write answers to the prompts of this rank; those to the same prompt are next to each other."""
        config, numbers = self.config, range(answers_each)
        check_room(max(map(len, batch["prompts"])), config)
        seeds = [derived_seed(config.seed, step, sample, n) for sample in batch["sample_ids"].tolist() for n in numbers]
        with gathered_once(self.model, config.trainer.reshard_after_forward):
            return write_answers(
                self.model,
                [prompt for prompt in batch["prompts"] for _ in numbers],
                seeds,
                self.stop_ids,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                max_batch=config.rollout_batch_size,
            )

    def _rows(self, answers: Sequence[Answer]) -> Experience:
        return Experience.of_answers(answers, self.config.data.length, self.device)

    @torch.no_grad()
    def _collect(self, batch: dict[str, Any], step: int) -> Experience:
        """Write the answers of a round and compute what its updates need: scores, log-probabilities, advantages."""
        config = self.config
        answers = self._write(batch, config.group_size, step)
        experience = self._rows(answers)
        self._tokens_read = int(experience.lengths.sum())
        fields = [fields for fields in batch["fields"] for _ in range(config.group_size)]
        rewards = self.rewards(answers, fields, experience, config.update_micro_batch_size)
        experience.scores = self._score(rewards, experience)
        with evaluating(*self._models):
            # shaped as in the first pass of updates, so that the first one finds the very same numbers
            parts = [
                self._score_tokens(part)
                for minibatch in experience.split(len(experience) // config.minibatches)
                for part in minibatch.split(config.update_micro_batch_size)
            ]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        experience.log_probs, experience.reference_log_probs, experience.values = columns
        kl = kl_estimate(experience.reference_log_probs - experience.log_probs, self.kl_kind)
        price = self.kl_price.coefficient
        set_advantages(experience, kl, price, config, self.total)
        self.note(round_sums(experience, kl, price, rewards), training=True)
        return experience

    def _score(self, rewards: dict[str, Tensor], experience: Experience) -> Tensor:
        """Compute the reward of each whole answer [b], less the penalty of one that was cut off."""
        scores = self.rewards.weighted(rewards)
        return scores - torch.where(experience.ended, 0.0, self.config.missing_eos_penalty or 0.0)

    def _minibatches(self, experience: Experience, step: int) -> list[Experience]:
        """Deal the answers out to the updates; each pass after the first shuffles them."""
        size = len(experience) // self.config.minibatches
        minibatches = experience.split(size)
        rank = data_parallel_rank(self.trainer)[0]
        for epoch in range(1, self.config.update_epochs):
            if self.config.minibatches > 1:
                stream = named_generator(self.config.seed, f"minibatches {step} {epoch} {rank}")
                experience = experience.rows(torch.randperm(len(experience), generator=stream).to(self.device))
            minibatches += experience.split(size)
        return minibatches

    def _score_tokens(self, part: Experience) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-probabilities under policy and reference, and values [b, t]; 0 where no token is chosen."""
        log_probs, _, values = self._read(self.model, part)
        if self._reference:
            reference, _, _ = self._read(self._reference[0], part)
        else:
            with adapters_off(self.model):
                reference, _, _ = self._read(self.model, part)
        return log_probs, reference, torch.zeros_like(log_probs) if values is None else values

    def _read(self, model: Decoder, part: Experience) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute log-probabilities of the targets, entropies and, where the model is the policy, values [b, t]."""
        targets, own = part.targets, model is self.model

        def read(hidden: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor, Tensor | None]:
            log_probs, entropy, _ = hidden_log_probs(
                model,
                hidden,
                head,
                targets,
                temperature=self.config.temperature,
                chunk_tokens=self.config.loss_chunk(targets.device.type),
                with_entropy=True,
            )
            assert entropy is not None
            values = token_scores(hidden, model.value_head) if own and model.value_head is not None else None
            return log_probs, entropy, values

        log_probs, entropy, values = model(part.tokens, head=read)
        if own and self.critic is not None:
            values = self.critic(part.tokens)
        return log_probs, entropy, values if values is None else torch.where(part.mask, values, 0.0)

    # What the base class asks for.

    def token_loss(self, batch: dict[str, Any], training: bool) -> tuple[Tensor, Tensor]:
        """Sum the negated rewards of answers to validation prompts, and count the answers.

        Each prompt gets one answer, at the temperature of training and from the same seed at every validation.
        """
        answers = self._write(batch, 1, "validation")
        experience = self._rows(answers)
        real = batch["sample_ids"] >= 0  # the others fill up a rank's share of the validation split
        rewards = self.rewards(answers, batch["fields"], experience, self.config.update_micro_batch_size, real)
        scores = self._score(rewards, experience)
        lengths = torch.tensor([float(len(answer.ids)) for answer in answers], device=self.device)
        values = {"reward": scores, "response_length": lengths, "ended": experience.ended.float()}
        values |= {f"rewards/{name}": value for name, value in rewards.items()}
        count = real.sum()
        self.note({name: (torch.where(real, value, 0.0).sum(), count) for name, value in values.items()}, training)
        return -torch.where(real, scores, 0.0).sum(), count

    def tokens_of(self, batch: dict[str, Any]) -> int:
        """Count the tokens of the round's prompts and answers, without padding."""
        return self._tokens_read

    def flops_per_token(self) -> None:
        """Give none: a round also writes each of the tokens, and reads them with several models."""

    @property
    def nominal_tokens(self) -> int:
        """The most answer tokens that are learned from at once; dividing by them keeps the summed loss in range."""
        rows = self.config.data.batch_size * self.config.group_size // self.data_parallel_size
        return min(rows, self.config.update_micro_batch_size or rows) * self.config.max_new_tokens

    def log_step(self, optimizer: Optimizer, step: int, loss: float, norm: float) -> None:
        """Keep the loss and the norm of an update for the end of the round, where their means are logged."""
        self._updates.append((loss, norm))

    def leaves_out(self, step: StepMean, norm: float) -> bool:
        """Refuse an update that is not finite. Spikes are looked for once in a round: see `_end_round`."""
        if math.isfinite(step.loss) and math.isfinite(norm):
            return False
        if not self._updates:  # the weights are still those of the step before
            return super().leaves_out(replace(step, parts=[_sum(step.parts)]), norm)
        raise UserError(
            f"the loss ({step.loss}) or the gradient (norm {norm}) of update {len(self._updates) + 1} in step "
            f"{step.number} is not finite; stopped, and the checkpoints of earlier steps are intact: lower "
            "optimizer.learning_rate, then resume"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep, besides what every stage keeps, the price of leaving the reference."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KL_KEY] = self.kl_price.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `LanguageModule.on_load_checkpoint`. A price that does not adapt comes from this run's options."""
        super().on_load_checkpoint(checkpoint)
        if self.config.kl_target is not None and KL_KEY in checkpoint:
            self.kl_price.load_state_dict(checkpoint[KL_KEY])

    # Curves.

    def _end_round(self, optimizer: Optimizer, step: int, experience: Experience) -> None:
        """Write the curves of the round, look for a spike, and adapt the price of leaving the reference."""
        updates, self._updates = self._updates, []
        loss, norm = (sum(column) / len(updates) for column in zip(*updates, strict=True))
        if self.step_guard is not None:
            count = torch.tensor(len(experience), device=self.device)
            self.step_guard.leaves_out(step, loss, norm, [(count * loss, count)])
        means = self.training_means.compute()
        self.training_means.reset()
        counts = torch.tensor([float(experience.ended.sum()), float(len(experience))], device=self.device)
        ended, answers = self.total(counts).tolist()
        coefficient = self.kl_price.coefficient
        self.kl_price.update(means["objective/kl"], round(answers))
        if self.logs_step(step):
            rates = {f"learning_rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
            known = {"objective/num_eos": ended, "objective/kl_coefficient": coefficient}
            self.record({"train/loss": loss, "train/gradient_norm": norm, **means, **known, **rates}, step)


def check_room(longest_prompt: int, config: PPOConfig) -> None:
    """Raises UserError where a prompt and its answer may not fit a row."""
    if longest_prompt + config.max_new_tokens > config.data.length:
        raise UserError(
            f"a prompt of {longest_prompt} tokens and an answer of max_new_tokens {config.max_new_tokens} exceed "
            f"data.sequence_length {config.data.length}; raise it, lower max_new_tokens, or leave the prompt "
            "out"
        )


def _sum(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    loss, tokens = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    return loss, tokens
