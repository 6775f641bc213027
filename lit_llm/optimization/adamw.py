"""AdamW over sharded parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_llm.distributed.tensors import local_part


class LocalAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that updates this rank's part of each parameter as a plain tensor.

    The update is elementwise, so parts need not know of each other; going through DTensor would dispatch each kernel
    slowly and refuse one over parameters of different meshes, which tensor parallelism makes. The state stays sharded
    like the parameters. Plain parameters are updated as ever.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = [local_part(tensor) for tensor in tensors]
        return has_complex
