"""Muon for the hidden matrices and AdamW for everything else, as one optimizer.

Muon: https://kellerjordan.github.io/posts/muon/. The update rule is that of `torch.optim.Muon`; here the
orthogonalisation of all matrices of one shape is batched, which a small model notices, and the momentum warms up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lit_llm.distributed.shares import Shares, by_mesh
from lit_llm.distributed.tensors import local_part
from lit_llm.optimization.adamw import LocalAdamW

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iterates bring every singular value near 1 in few steps (Jordan's post)."""
NS_EPS = 1e-7
"""Smallest norm that a matrix is divided by."""
MAX_STACK_ELEMENTS = 64 * 2**20
"""Largest stack of matrices that is orthogonalised at once: bounds the temporary memory."""


class MuonAdamW(torch.optim.Optimizer):
    """Steps groups of kind "muon" with Muon and groups of kind "adamw" with AdamW.

    A Muon step, for a matrix W [rows, columns] with gradient G, momentum buffer B and momentum m:
    B <- lerp(B, G, 1 - m);  U <- orthogonalise(lerp(G, B, m));  W <- (1 - lr * weight_decay) * W
    - lr * sqrt(max(1, rows / columns)) * U. The momentum rises linearly from `momentum_start` at the first step to
    `momentum` at step `momentum_warmup_steps`; the group counts its steps in "step", so a resumed run goes on exactly.
    Of sharded matrices each rank orthogonalises its share: it is sent the whole of those, in the type of the
    arithmetic, and sends each rank its part of the result.

    Args:
        groups: dicts with "params", "kind" ("muon" or "adamw"), "lr" and "weight_decay", as `parameter_groups` makes.
        betas: of AdamW.
        eps: of AdamW.
        fused: whether AdamW runs as one fused kernel.
        momentum: of Muon, after warm-up.
        momentum_start: of Muon, at the first step.
        momentum_warmup_steps: steps over which the momentum rises; 0 for none.
        ns_steps: Newton-Schulz iterations.
        ns_dtype: their arithmetic.
        compiled: let torch's compiler make one function of the iterations, for all shapes.

    Raises:
        ValueError: a group of another kind, or a Muon parameter that is not a matrix.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = False,
        momentum: float = 0.95,
        momentum_start: float = 0.85,
        momentum_warmup_steps: int = 300,
        ns_steps: int = 5,
        ns_dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self._kind_defaults: dict[str, dict[str, Any]] = {
            "adamw": {"betas": betas, "eps": eps, "fused": fused},
            "muon": {
                "momentum": momentum,
                "momentum_start": momentum_start,
                "momentum_warmup_steps": momentum_warmup_steps,
                "ns_steps": ns_steps,
                "step": 0,
            },
        }
        self._ns_dtype = ns_dtype
        self._compiled = compiled
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`."""
        kind = param_group.get("kind")
        if kind not in self._kind_defaults:
            raise ValueError(f'a parameter group has kind {kind!r}; it must be "muon" or "adamw"')
        super().add_param_group({**self._kind_defaults[kind], **param_group})
        if kind == "muon":
            for parameter in self.param_groups[-1]["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices only, not a parameter of shape {list(parameter.shape)}")
        self._link_adamw()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_kind_defaults": self._kind_defaults,
            "_ns_dtype": self._ns_dtype,
            "_compiled": self._compiled,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # `load_state_dict` and unpickling come through here with new `state` and `param_groups`.
        super().__setstate__(state)
        self._link_adamw()

    def _link_adamw(self) -> None:
        """Make the inner AdamW, which shares the group dicts and the state of this optimizer."""
        groups = [group for group in self.param_groups if group["kind"] == "adamw"]
        self._adamw = LocalAdamW(groups) if groups else None
        if self._adamw is not None:
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of every group, after calling `closure` with gradients enabled; returns its result."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._adamw is not None:
            self._adamw.step()
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon_step(group)
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        momentum = momentum_at(
            group["step"], group["momentum_start"], group["momentum"], group["momentum_warmup_steps"]
        )
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return  # a step that is left out does not count
        group["step"] += 1
        for parameter in params:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
        grads = [local_part(parameter.grad) for parameter in params]
        buffers = [local_part(self.state[parameter]["momentum_buffer"]) for parameter in params]
        weights = [local_part(parameter) for parameter in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        directions = torch._foreach_lerp(grads, buffers, momentum)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for index, update in self._orthogonalized(directions, params, group["ns_steps"]):
            rows, columns = params[index].shape
            weights[index].add_(
                update.to(weights[index].device), alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns))
            )

    def _orthogonalized(
        self, directions: Sequence[Tensor], params: list[Tensor], steps: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Give this rank's part of each orthogonalised direction, with its index; every rank must take all of them."""
        for mesh, indices in by_mesh(params).items():
            if mesh is None:
                yield from self._of_whole({index: directions[index] for index in indices}, steps)
                continue
            shares = Shares([cast("DTensor", params[index]) for index in indices], _operations)
            wholes = shares.collect([directions[index] for index in indices], self._ns_dtype)
            parts = shares.deal(dict(self._of_whole(wholes, steps)), self._ns_dtype)
            yield from ((indices[number], part) for number, part in parts.items())

    def _of_whole(self, matrices: dict[int, Tensor], steps: int) -> Iterator[tuple[int, Tensor]]:
        iterate = compiled_orthogonalize() if self._compiled else orthogonalize
        for numbers in _batches(matrices):
            stack = torch.stack([_wide(matrices[number]) for number in numbers])
            for number, update in zip(numbers, iterate(stack, steps, self._ns_dtype).unbind(), strict=True):
                rows, columns = matrices[number].shape
                yield number, update.mT if rows > columns else update


def momentum_at(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Momentum of Muon at `step` (the first is 0): linear from `start`, and `end` from step `warmup_steps` on."""
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Newton-Schulz iteration: turn each matrix U S V^T into about U V^T, with singular values from 0.7 to 1.2.

    Args:
        matrices: [k, rows, columns], rows <= columns.
        steps: iterations.
        dtype: of the arithmetic.

    Returns:
        [k, rows, columns], of that dtype.
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.to(dtype)
    # The Frobenius norm bounds the spectral norm, which must be at most 1 for the iteration to converge.
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=NS_EPS)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


@cache
def compiled_orthogonalize() -> Callable[..., Tensor]:
    """`orthogonalize`, compiled when it is first called."""
    return torch.compile(orthogonalize, dynamic=True)


def _wide(matrix: Tensor) -> Tensor:
    """Transpose a matrix where it is needed, so that it has no more rows than columns."""
    return matrix.mT if matrix.size(0) > matrix.size(1) else matrix


def _operations(shape: torch.Size) -> float:
    """What orthogonalising a matrix takes, but for a factor: products of the Gram matrix."""
    return float(min(shape)) ** 2 * max(shape)


def _batches(matrices: Mapping[int, Tensor], max_elements: int = MAX_STACK_ELEMENTS) -> Iterator[list[int]]:
    """Keys of matrices to orthogonalise at once: of one shape, up to transposition, and bounded in memory."""
    by_shape: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, matrix in matrices.items():
        by_shape[(*sorted(matrix.shape), matrix.dtype, matrix.device)].append(index)
    for (rows, columns, *_), indices in by_shape.items():
        size = max(1, max_elements // (rows * columns))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
