"""What pretraining reads of a batch, and when."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from lit_llm.config import PretrainConfig
from lit_llm.data.loading.data_module import with_places
from lit_llm.modules import PretrainingModule


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_micro_batch_is_computed_without_waiting_for_a_value() -> None:
    """Tensors without values refuse to be read, as by what makes the host wait for a GPU."""
    targets = torch.arange(64).view(2, 32)
    targets[:, 20:] = -100
    batch = with_places({"tokens": torch.zeros(2, 32, dtype=torch.long), "targets": targets})
    assert batch["supervised"].tolist() == [*range(20), *range(32, 52)]
    with FakeTensorMode() as mode:
        module = PretrainingModule(PretrainConfig(model=tiny_model()))
        batch = {name: mode.from_tensor(tensor) for name, tensor in batch.items()}
        loss, tokens = module.token_loss(batch, training=True)
        loss.backward()
        assert (loss.shape, tokens.shape) == ((), ())
        del batch["supervised"]
        with pytest.raises(DynamicOutputShapeException):
            module.token_loss(batch, training=True)
