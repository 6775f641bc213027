"""Losses of direct preference optimization and its family, from summed log-probabilities of answers.

Notation: b pairs; c and r are log(policy / reference) of the chosen and the rejected answer, Lc and Lr their numbers
of tokens, D = c - r, e the label smoothing, ls the log-sigmoid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceKind = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "exo",
    "nca",
    "bco",
    "sppo",
    "apo_zero",
    "apo_down",
    "simpo",
]
"""Names of the losses; `PreferenceLoss` has their formulae."""

SMOOTHED: tuple[PreferenceKind, ...] = ("sigmoid", "robust", "exo")
"""Losses that read `label_smoothing`."""
REFERENCE_FREE: tuple[PreferenceKind, ...] = ("simpo",)
"""Losses that need no reference model."""
READS_SIMPO_GAMMA: tuple[PreferenceKind, ...] = ("simpo",)
"""Losses that read `simpo_gamma`."""

_DEFAULT_GAMMA = 0.5


@dataclass(frozen=True)
class PreferenceLoss:
    """One of the losses below, with its options.

    | kind | loss of a pair | source |
    |---|---|---|
    | sigmoid | -(1 - e) ls(beta D) - e ls(-beta D) | DPO https://arxiv.org/abs/2305.18290; e: cDPO |
    | robust | (-(1 - e) ls(beta D) + e ls(-beta D)) / (1 - 2e) | https://arxiv.org/abs/2403.00409 |
    | hinge | relu(1 - beta D) | SLiC https://arxiv.org/abs/2305.10425 |
    | ipo | (c / Lc - r / Lr - 1 / (2 beta))^2 | https://arxiv.org/abs/2310.12036, per token |
    | sigmoid_norm | -ls(beta (c / Lc - r / Lr)) | Tulu 3 https://arxiv.org/abs/2411.15124 |
    | exo | KL of (q, 1 - q) from (1 - e, e), q = sigmoid(beta D) | https://arxiv.org/abs/2402.00856 |
    | nca | -ls(beta c) - ls(-beta c) / 2 - ls(-beta r) / 2 | https://arxiv.org/abs/2402.05369 |
    | bco | -ls(beta c) - ls(-beta r) | https://arxiv.org/abs/2404.04656, without its shift |
    | sppo | (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 | https://arxiv.org/abs/2405.00675 |
    | apo_zero | 1 - sigmoid(beta c) + sigmoid(beta r) | https://arxiv.org/abs/2408.06266 |
    | apo_down | sigmoid(beta c) + 1 - sigmoid(beta D) | the same |
    | simpo | -ls(beta (mean log p(chosen) - mean log p(rejected)) - gamma) | https://arxiv.org/abs/2405.14734 |

    Args:
        kind: which loss.
        beta: how strongly the policy is held to the reference. None becomes 2.0 for simpo, whose paper takes 2.0 to
            2.5, and 0.1 for the others.
        label_smoothing: e, the share of labels that is taken to be wrong, from 0 to below 0.5.
        simpo_gamma: gamma.

    Raises:
        ValueError: an unknown kind, an option outside its range, or one that the kind does not read.
    """

    kind: PreferenceKind = "sigmoid"
    beta: float = None  # type: ignore[assignment]  # a number once made
    label_smoothing: float = 0.0
    simpo_gamma: float = _DEFAULT_GAMMA

    def __post_init__(self) -> None:
        if self.kind not in get_args(PreferenceKind):
            raise ValueError(f"unknown preference loss {self.kind!r}; the kinds are {get_args(PreferenceKind)}")
        if self.beta is None:
            object.__setattr__(self, "beta", 2.0 if self.kind == "simpo" else 0.1)
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}; it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be from 0 to below 0.5")
        if self.label_smoothing and self.kind not in SMOOTHED:
            raise ValueError(f"label_smoothing has no effect on {self.kind}; it is read by {SMOOTHED}")
        if self.kind == "exo" and not self.label_smoothing:
            raise ValueError("exo needs label_smoothing above 0 (its paper uses 1e-3)")
        if not 0 <= self.simpo_gamma < math.inf:
            raise ValueError(f"simpo_gamma is {self.simpo_gamma}; it must be at least 0")
        if self.simpo_gamma != _DEFAULT_GAMMA and self.kind not in READS_SIMPO_GAMMA:
            raise ValueError(f"simpo_gamma has no effect on {self.kind}; it is read by {READS_SIMPO_GAMMA}")

    @property
    def needs_reference(self) -> bool:
        """Whether the log-probabilities of a reference are needed."""
        return self.kind not in REFERENCE_FREE

    def __call__(
        self,
        chosen: Tensor,
        rejected: Tensor,
        reference_chosen: Tensor | None,
        reference_rejected: Tensor | None,
        chosen_tokens: Tensor,
        rejected_tokens: Tensor,
    ) -> Tensor:
        """Compute the loss of each pair [b].

        Args:
            chosen: [b] log-probability of the chosen answer under the policy, summed over its tokens.
            rejected: [b], the same of the rejected answer.
            reference_chosen: [b], the same under the reference; None for the kinds in REFERENCE_FREE, and only there.
            reference_rejected: [b] or None.
            chosen_tokens: [b] numbers of tokens.
            rejected_tokens: [b].

        Raises:
            ValueError: a reference that is missing or has no effect, or shapes that are not all [b].
        """
        c, r = self._log_ratios(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)
        if self.kind in ("ipo", "sigmoid_norm", "simpo"):
            c, r = _per_token(c, chosen_tokens), _per_token(r, rejected_tokens)
        return self._of_difference(c - r) if self.kind in _OF_DIFFERENCE else self._of_both(c, r)

    def implicit_rewards(
        self,
        chosen: Tensor,
        rejected: Tensor,
        reference_chosen: Tensor | None,
        reference_rejected: Tensor | None,
        chosen_tokens: Tensor,
        rejected_tokens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """beta c and beta r, each [b] without gradient: the rewards that the policy is optimal for.

        For simpo they are beta times the mean log-probabilities. Arguments and errors as those of the loss.
        """
        c, r = self._log_ratios(chosen, rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens)
        if self.kind == "simpo":
            c, r = _per_token(c, chosen_tokens), _per_token(r, rejected_tokens)
        return self.beta * c.detach(), self.beta * r.detach()

    def _log_ratios(self, chosen: Tensor, rejected: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        """The log-ratios c and r of policy and reference; without a reference the log-probabilities themselves."""
        shapes = {tuple(tensor.shape) for tensor in (chosen, rejected, *others) if tensor is not None}
        if chosen.dim() != 1 or len(shapes) != 1:
            raise ValueError(f"log-probabilities and token counts must be [b] of one b; their shapes are {shapes}")
        reference_chosen, reference_rejected = others[:2]
        if self.needs_reference:
            if reference_chosen is None or reference_rejected is None:
                raise ValueError(f"{self.kind} needs the log-probabilities of both answers under the reference")
            return chosen - reference_chosen, rejected - reference_rejected
        if reference_chosen is not None or reference_rejected is not None:
            raise ValueError(f"{self.kind} has no reference; leave its log-probabilities out")
        return chosen, rejected

    def _of_difference(self, difference: Tensor) -> Tensor:
        smoothing, logits = self.label_smoothing, self.beta * difference
        match self.kind:
            case "sigmoid":
                return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)
            case "sigmoid_norm":
                return -F.logsigmoid(logits)
            case "simpo":
                return -F.logsigmoid(logits - self.simpo_gamma)
            case "robust":
                signed = -(1 - smoothing) * F.logsigmoid(logits) + smoothing * F.logsigmoid(-logits)
                return signed / (1 - 2 * smoothing)
            case "hinge":
                return torch.relu(1 - logits)
            case "ipo":
                return (difference - 1 / (2 * self.beta)).square()
            case _:  # exo
                right, wrong = F.logsigmoid(logits), F.logsigmoid(-logits)
                return right.exp() * (right - math.log1p(-smoothing)) + wrong.exp() * (wrong - math.log(smoothing))

    def _of_both(self, c: Tensor, r: Tensor) -> Tensor:
        chosen, rejected = self.beta * c, self.beta * r
        match self.kind:
            case "nca":
                return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
            case "bco":
                return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)
            case "sppo":
                target = 1 / (2 * self.beta)
                return (c - target).square() + (r + target).square()
            case "apo_zero":
                return torch.sigmoid(-chosen) + torch.sigmoid(rejected)
            case _:  # apo_down
                return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


_OF_DIFFERENCE = ("sigmoid", "sigmoid_norm", "simpo", "robust", "hinge", "ipo", "exo")


def _per_token(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return log_probs / tokens.clamp(min=1)


def tail_weights(chosen_mask: Tensor, rejected_mask: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Weights of tokens that discount what the longer answer of a pair has beyond the length of the shorter one.

    With log-probabilities weighted by them, length alone counts for less (LD-DPO,
    https://arxiv.org/abs/2409.06411). alpha 1 changes nothing, alpha 0 leaves only the shared length.

    Args:
        chosen_mask: [b, t] the tokens of the answer, which may start anywhere in a row.
        rejected_mask: [b, u].
        alpha: weight of the tail, from 0 to 1.

    Returns:
        [b, t] and [b, u] float32: 1 for the first min(Lc, Lr) tokens of an answer, alpha for the rest, 0 elsewhere.

    Raises:
        ValueError: alpha outside its range, or masks of different b.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 to 1")
    masks = [chosen_mask.bool(), rejected_mask.bool()]
    if any(mask.dim() != 2 for mask in masks) or masks[0].size(0) != masks[1].size(0):
        raise ValueError(f"masks {list(masks[0].shape)} and {list(masks[1].shape)} must be [b, t] and [b, u]")
    shared = torch.minimum(*(mask.sum(1, keepdim=True) for mask in masks))
    chosen, rejected = ((mask.cumsum(1) <= shared).float().clamp(min=alpha) * mask for mask in masks)
    return chosen, rejected
