"""Products of training in float8 (torchao): factors are rounded to 8 bits as they come, sums are kept in bfloat16.

Weights, gradients and the optimizer stay as they are. A product of 8-bit factors takes a Hopper GPU half the time of
one in bfloat16, from which the rounding takes something back: it pays for wide layers and many tokens.

Source: Micikevicius et al. 2022 (FP8 formats for deep learning).
"""

from __future__ import annotations

import torch
from torch import nn

from lit_llm.config import PROJECTIONS, UserError
from lit_llm.config.extras import optional_module
from lit_llm.model.linear import is_plain

LEAST_CAPABILITY = (8, 9)
"""Of a CUDA device that multiplies float8: Ada, Hopper and later."""
MULTIPLE = 16
"""What its kernels want widths to be divisible by."""


def check_float8(device_type: str) -> None:
    """Refuse float8 where it cannot be computed.

    Args:
        device_type: of the device that trains.

    Raises:
        UserError: it is no CUDA device, or one that is too old; or torchao is missing.
    """
    if device_type != "cuda":
        raise UserError("trainer.float8 needs CUDA, as processors have no products in float8; leave it out")
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        raise UserError(
            f"trainer.float8 needs a GPU of compute capability {'.'.join(map(str, LEAST_CAPABILITY))} or higher (Ada, "
            f"Hopper, Blackwell); {torch.cuda.get_device_name()} has {'.'.join(map(str, capability))}: leave it out"
        )
    optional_module("torchao.float8", "trainer.float8", "torchao")


def is_float8(module: nn.Module) -> bool:
    """Whether a layer multiplies in float8."""
    return type(module).__name__ == "Float8Linear"


def use_float8(blocks: nn.Module, emulate: bool = False) -> None:
    """Let the linear layers of `blocks` multiply in float8, but for those whose widths are no multiples of 16.

    Names of parameters, and the parameters themselves, stay.

    Args:
        blocks: changed in place; may be on the meta device.
        emulate: round, but multiply in wider types, as for a look at it without such a GPU.

    Raises:
        UserError: torchao is missing, or no layer can be computed so.
    """
    float8 = optional_module("torchao.float8", "trainer.float8", "torchao")
    taken = 0

    def is_taken(module: nn.Module, name: str) -> bool:
        nonlocal taken
        if not is_plain(module) or name.rpartition(".")[2] not in PROJECTIONS:
            return False
        if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            return False
        taken += 1
        return True

    config = float8.Float8LinearConfig(pad_inner_dim=True, emulate=emulate)  # tokens need not be such a multiple
    float8.convert_to_float8_training(blocks, config=config, module_filter_fn=is_taken)
    if not taken:
        raise UserError(f"trainer.float8 has no effect: no projection has widths that are multiples of {MULTIPLE}")
