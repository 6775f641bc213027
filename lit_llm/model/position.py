"""Positions: the 2017 sinusoidal table, and rotary embeddings with their context extensions."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_llm.config import ModelConfig, RopeScaling, UserError


def sinusoidal_table(length: int, width: int) -> Tensor:
    """Fixed position vectors: sines in the even dimensions and cosines in the odd ones.

    Returns:
        Float tensor [length, width].

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.empty(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float()


def token_positions(length: int, document_ids: Tensor | None, device: torch.device, limit: int) -> Tensor:
    """Distance of each token from the start of its document: [t], or [b, t] where rows differ.

    Args:
        length: tokens, t.
        document_ids: document of each token [b, t], or None.
        device: where the positions are made.
        limit: most tokens of a text.

    Raises:
        UserError: the text is longer than that.
    """
    if length > limit:
        raise UserError(f"a text of {length} tokens is longer than the model's context of {limit} tokens")
    index = torch.arange(length, device=device)
    if document_ids is None:
        return index
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def rotary_frequencies(width: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Angle per position of each pair of dimensions, and the factor that cosines and sines are multiplied by.

    Args:
        width: width of a head.
        theta: base of the wavelengths.
        scaling: context extension, or None.

    Returns:
        Frequencies in radians per token [width / 2], and the attention factor (1 except for yarn).

    Source: Su et al. 2021 (RoPE); Chen et al. 2023 (linear); Llama 3.1 (llama3); Peng et al. 2023 (yarn).
    """
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies, 1.0
    if scaling.type == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.type == "llama3":
        return _llama3_frequencies(frequencies, scaling), 1.0
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0
    return _yarn_frequencies(frequencies, width, theta, scaling), factor


def _llama3_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    original = float(scaling.original_max_position_embeddings or 0)
    turns = original * frequencies / (2 * math.pi)  # full turns over the original context
    # 0 where a dimension turns so slowly that it is stretched by the whole factor, 1 where it is left alone
    keep = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0.0, 1.0)
    return keep * frequencies + (1.0 - keep) * frequencies / scaling.factor


def _yarn_frequencies(frequencies: Tensor, width: int, theta: float, scaling: RopeScaling) -> Tensor:
    original = float(scaling.original_max_position_embeddings or 0)

    def dimension_that_turns(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_that_turns(scaling.beta_slow)), width - 1)
    ramp = ((torch.arange(width // 2).float() - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
    return (1.0 - ramp) * frequencies + ramp * frequencies / scaling.factor


class DeviceTables(nn.Module):
    """Constant tables, built from the configuration in float32 and kept for each device that reads them.

    They are no buffers: those would be rounded by `module.to(bfloat16)` and lost by building on the meta device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_device: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tables on `device`, and build them if this is the first time."""
        if self._buffers:
            return tuple(table for table in self._buffers.values() if table is not None)
        if device not in self._by_device:
            # an ordinary tensor even when first read in inference mode, so that training may use it later
            with torch.inference_mode(False), torch.device("cpu"):
                self._by_device[device] = tuple(table.to(device) for table in self.build())
        return self._by_device[device]

    def with_buffers(self, device: torch.device) -> DeviceTables:
        """A copy for this device alone that has the tables as buffers, as what is compiled must own what it reads."""
        fixed = copy.copy(self)
        fixed.__dict__ = {**self.__dict__, "_buffers": {}}
        for number, table in enumerate(self.on(device)):
            fixed.register_buffer(f"table_{number}", table)
        return fixed

    @abstractmethod
    def build(self) -> tuple[Tensor, ...]:
        """Compute the tables on the CPU."""


class SinusoidalTable(DeviceTables):
    """The fixed position vectors of the 2017 model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def build(self) -> tuple[Tensor, ...]:
        """Build one vector for each position."""
        return (sinusoidal_table(self.config.max_position_embeddings, self.config.hidden_size),)

    def forward(self, positions: Tensor) -> Tensor:
        """Vectors at `positions` [...]: float32 [..., hidden]."""
        return self.on(positions.device)[0][positions]


class RotaryTables(DeviceTables):
    """Cosines and sines of every position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def build(self) -> tuple[Tensor, ...]:
        """Build cosines and sines [max_position_embeddings, d/2]."""
        config = self.config
        frequencies, factor = rotary_frequencies(config.width_per_head, config.rope_theta, config.rope_scaling)
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequencies)
        return angles.cos() * factor, angles.sin() * factor

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tables at `positions` ([t], or [b, t] where rows differ), ready to broadcast over heads.

        Returns:
            Cosines and sines in `dtype`, [t, d/2] or [b, 1, t, d/2].
        """
        # in the dtype of q and k: float32 tables would promote a bfloat16 attention to float32
        cos, sin = (table[positions].to(dtype) for table in self.on(positions.device))
        if positions.dim() == 2:
            return cos.unsqueeze(1), sin.unsqueeze(1)
        return cos, sin


def rotary_tables(config: ModelConfig, window: int | None) -> RotaryTables | None:
    """The tables of the layers with this sliding window (None: the global ones); None without rotary positions."""
    if config.position != "rope":
        return None
    if window is not None and config.rope_theta_windowed is not None:
        config = replace(config, rope_theta=config.rope_theta_windowed, rope_scaling=None)
    return RotaryTables(config)


class _Rotate(torch.autograd.Function):
    """Turn the two halves of each head. The gradient of a turn is the turn back, so only the tables are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, sin, -1.0), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.size(-1) // 2
    out = torch.empty_like(x)
    first, second = x[..., :half], x[..., half:]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)
    return out


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys to their positions, dimension i paired with i + d/2.

    Args:
        x: [b, n_h, t, d].
        cos: [t, d/2] or [b, 1, t, d/2].
        sin: the same.
    """
    if torch.compiler.is_compiling():
        # the compiler fuses the plain formula, and cannot follow writes into slices
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin, 1.0)
    return _Rotate.apply(x, cos, sin)
