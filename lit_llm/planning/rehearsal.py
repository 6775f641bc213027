"""One training step gone through on the meta device, to learn what it holds at each moment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from lit_llm.config import ModelConfig, TrainerConfig
from lit_llm.model import Decoder
from lit_llm.model.checkpointing import block_choices
from lit_llm.model.context_parallel import ContextRanks
from lit_llm.model.log_probs import own_targets
from lit_llm.model.tensor_parallel import TensorRanks
from lit_llm.objectives import linear_cross_entropy
from lit_llm.planning.live_memory import ATTENTION_BACKWARD, LiveMemory
from lit_llm.planning.pretended_device import PretendedDevice

Arithmetic = Literal["float32", "autocast", "bfloat16"]


@dataclass(frozen=True)
class Step:
    """What a device does in one micro-batch."""

    rows: int
    """Number of windows in the micro-batch."""
    length: int
    """Tokens in a window."""
    arithmetic: Arithmetic = "float32"
    """Type of the arithmetic: float32, bfloat16 by autocast on float32 weights, or bfloat16 weights."""
    checkpointing: Literal["none", "full", "every_n", "selective"] = "none"
    """What each block keeps of its forward pass."""
    every_n_blocks: int = 2
    """With checkpointing "every_n", every so many-th block is checkpointed."""
    accumulated: bool = False
    """Whether the gradients of an earlier micro-batch are there from the start."""
    documents: bool = False
    """Whether attention is masked to documents."""
    masks_attention: bool = False
    """Whether a mask over all pairs of tokens does what a kernel would leave out; see `trainer.attention_kernel`."""
    loss_chunk_tokens: int | None = 512
    """See `linear_cross_entropy`."""
    z_loss: float = 0.0
    """See `linear_cross_entropy`."""
    tensor_parallel: int = 1
    """Ranks that share each matrix product; the model that is rehearsed has this rank's part of them."""
    splits_tokens: bool = False
    """Whether those cut the stream by tokens."""
    context_parallel: int = 1
    """Ranks that share each window."""


class Moment(NamedTuple):
    """Bytes held at one moment of a step, besides weights and optimizer."""

    phase: Literal["forward", "loss", "backward", "step"]
    block: int
    """The block at work; the number of blocks for what comes after the last one."""
    activations: int
    """Made by the forward pass and kept for the backward pass, bfloat16 copies of weights included."""
    loss: int
    """Made by the loss: a chunk of logits, and the gradients of head and hidden states."""
    temporary: int
    """Made by the backward pass; gradients that are not whole yet included."""
    outer_gradients: int
    """Finished gradients of parameters outside the blocks."""
    block_gradients: int
    """Finished gradients of parameters inside the blocks."""


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal has seen."""

    moments: list[Moment]
    """Every moment that memory was taken, in order, and the optimizer step; blocks that repeat others are left out."""
    flops: int
    """Floating-point operations, including what checkpointing computes again."""
    exchanges: Counter[tuple[str, str]]
    """What the ranks that share products and windows exchange; see `LiveMemory.exchanges`."""


class PretendedGroup:
    """Stands for ranks of which this is the first, as a group and as a mesh: on the meta device nothing is sent."""

    group_name = "pretended"

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def get_group(self) -> PretendedGroup:
        """The group of a mesh."""
        return self

    def size(self) -> int:
        """How many ranks there are."""
        return self.ranks

    def rank(self) -> int:
        """Which of them this is."""
        return 0

    get_local_rank = rank


def rehearse(config: ModelConfig, step: Step, device: Literal["accelerator", "cpu"] = "accelerator") -> Rehearsal:
    """Go through one micro-batch of `step` with a decoder of shape `config`, as `device` would compute it.

    A deep model is rehearsed with a few of its blocks: what the others add is known from those.

    Args:
        config: `vocab_size` must be set.
        step: what is done.
        device: whose kernels are meant; "accelerator" stands for CUDA.
    """
    period = math.lcm(
        2 if config.value_embeddings else 1, step.every_n_blocks if step.checkpointing == "every_n" else 1
    )
    shallow = config.num_layers % period + 3 * period
    repeats = max(0, (config.num_layers - shallow) // period)
    stage = _Stage(replace(config, num_layers=config.num_layers - repeats * period), step, device)
    stage.run()
    return stage.with_repeats(period, repeats)


class _Stage:
    """One rehearsal with every block of `config`."""

    def __init__(self, config: ModelConfig, step: Step, device: Literal["accelerator", "cpu"]) -> None:
        self.config, self.step = config, step
        self.pretended = PretendedDevice(device)
        self.phase: Literal["forward", "loss", "backward"] = "forward"
        self.block = 0
        self.moments: list[Moment] = []
        # (activations, operations, exchanges) at the start of each block's forward pass, and of its backward pass
        self.forward_starts: dict[int, tuple[int, int, Counter[tuple[str, str]]]] = {}
        self.backward_starts: dict[int, tuple[int, int, Counter[tuple[str, str]]]] = {}
        with torch.device("meta"):
            self.model = Decoder(config)
        if step.arithmetic == "bfloat16":
            self.model.to(torch.bfloat16)
        self.model.masks_attention = step.masks_attention
        if step.context_parallel > 1:
            self.model.text_ranks = ContextRanks(PretendedGroup(step.context_parallel))
        if step.tensor_parallel > 1:
            self.model.ranks = TensorRanks(PretendedGroup(step.tensor_parallel), step.splits_tokens)
            for block in self.model.blocks:
                block.ranks = self.model.ranks
        choice = TrainerConfig(
            activation_checkpointing=step.checkpointing,
            checkpoint_every_n_blocks=step.every_n_blocks if step.checkpointing == "every_n" else 2,
        )
        for block, does in zip(self.model.blocks, block_choices(choice, config.num_layers), strict=True):
            block.checkpointing = does
        workspace = {ATTENTION_BACKWARD: _attention_workspace} if device == "accelerator" else {}
        self.memory = LiveMemory(self.model.parameters(), self._look, workspace)
        for layer, block in enumerate(self.model.blocks):
            block.register_forward_pre_hook(partial(self._block_begins, layer))
            block.register_forward_hook(partial(self._watch_output, layer))
        for name, parameter in self.model.named_parameters():
            group = "block_gradients" if name.startswith("blocks.") else "outer_gradients"
            parameter.register_post_accumulate_grad_hook(partial(self._gradient_is_whole, group))

    def run(self) -> None:
        """Go through the forward and the backward pass."""
        step, device = self.step, self.pretended.device.type
        with ExitStack() as stack:
            for context in (_unchecked_recomputation(), torch.device("meta"), self.pretended, self.memory):
                stack.enter_context(context)
            if step.accumulated:
                self._add_gradients()
            tokens = torch.zeros(step.rows, step.length, dtype=torch.long)
            documents = torch.zeros_like(tokens) if step.documents else None
            with torch.autocast(device, torch.bfloat16, enabled=step.arithmetic == "autocast"):
                targets = own_targets(self.model, tokens)
                loss = self.model(
                    tokens, document_ids=documents, head=partial(self._loss, targets), head_reads_part=True
                )
            self.pretended.autocast_has_ended()
            self.phase, self.memory.category = "backward", "temporary"
            # what `loss.backward()` calls: that method itself would leave the pretended device for as long as it runs
            _engine_run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def with_repeats(self, period: int, repeats: int) -> Rehearsal:
        """The rehearsal of a model in which the second period of blocks stands `repeats` more times."""
        held = self.memory.bytes
        gradients = held.get("outer_gradients", 0), held.get("block_gradients", 0)
        self.moments.append(Moment("step", self.config.num_layers, 0, 0, 0, *gradients))
        exchanges = self.memory.exchanges.copy()
        if not repeats:
            return Rehearsal(self.moments, self.memory.flops, exchanges)
        first, after = period, 2 * period
        forward, backward = (
            (starts[after][0] - starts[first][0]) * repeats for starts in (self.forward_starts, self.backward_starts)
        )
        flops = self.forward_starts[after][1] - self.forward_starts[first][1]
        flops += self.backward_starts[first][1] - self.backward_starts[after][1]
        for starts, later, earlier in (
            (self.forward_starts, after, first),
            (self.backward_starts, first, after),
        ):
            for key, count in (starts[later][2] - starts[earlier][2]).items():
                exchanges[key] += count * repeats
        blocks = self.model.blocks[first:after]
        finished = repeats * sum(p.numel() * p.element_size() for p in blocks.parameters())

        def shifted(moment: Moment) -> Moment:
            more = backward if moment.phase == "backward" else forward
            late = moment.block >= after
            # the backward pass comes to the first blocks when the repeated ones have their gradients
            first_blocks = moment.phase == "backward" and not late
            done = self.step.accumulated or first_blocks or moment.phase == "step"
            return moment._replace(
                block=moment.block + repeats * period * late,
                activations=moment.activations + more * (late and moment.phase != "step"),
                block_gradients=moment.block_gradients + finished * done,
            )

        moments = [shifted(moment) for moment in self.moments]
        return Rehearsal(moments, self.memory.flops + flops * repeats, exchanges)

    def _loss(self, targets: Tensor, hidden: Tensor, head: nn.Linear) -> Tensor:
        self.phase, self.block, self.memory.category = "loss", self.config.num_layers, "loss"
        return linear_cross_entropy(
            hidden.flatten(0, 1),
            head.weight,
            targets.flatten(),
            chunk_tokens=self.step.loss_chunk_tokens,
            softcap=self.config.logits_softcap,
            z_loss=self.step.z_loss,
            num_classes=self.config.vocab_size,
        )

    def _add_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        for name, parameter in self.model.named_parameters():
            group = "block_gradients" if name.startswith("blocks.") else "outer_gradients"
            self.memory.put_down_to(parameter.grad, group)
        self.moments.clear()  # the step begins with all of them

    def _look(self, workspace: int) -> None:
        held = self.memory.bytes
        counts = [held.get(name, 0) for name in Moment._fields[2:]]
        counts[2] += workspace
        self.moments.append(Moment(self.phase, self.block, *counts))

    def _snapshot(self) -> tuple[int, int, Counter[tuple[str, str]]]:
        return self.memory.bytes.get("activations", 0), self.memory.flops, self.memory.exchanges.copy()

    def _block_begins(self, layer: int, *_: Any) -> None:
        if self.phase == "forward":  # not where checkpointing computes it again
            self.block = layer
            self.forward_starts[layer] = self._snapshot()

    def _watch_output(self, layer: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
        def begins(_gradient: Tensor) -> None:
            self.block = layer
            self.backward_starts[layer] = self._snapshot()

        output.register_hook(begins)

    def _gradient_is_whole(self, group: str, parameter: Tensor) -> None:
        self.memory.put_down_to(parameter.grad, group)


@contextmanager
def _unchecked_recomputation() -> Iterator[None]:
    """Let checkpointing not compare what it computes again with what it computed first.

    It compares devices, too, and torch leaves the pretended device inside of some operations and not of others.
    """
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    usual = checks["default"]
    checks["default"] = lambda _: None
    try:
        yield
    finally:
        checks["default"] = usual


def _attention_workspace(gradient: Tensor, query: Tensor, key: Tensor, *_: Any) -> int:
    """Take the memory of CUDA's kernel: it sums the gradient of q in float32, and those of k and v per query head."""
    shared = query.size(1) != key.size(1)
    return query.numel() * 4 + 2 * query.numel() * query.element_size() * shared
