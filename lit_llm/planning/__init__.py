"""What a run costs, before it is paid for: parameters, floating-point operations, memory, time and money."""

from lit_llm.planning.counting import count_parameters, parameters_by_part, training_flops_per_token
from lit_llm.planning.gpus import GPUS, PEAK_FLOPS, Gpu, find_gpu, matching_gpu

__all__ = [
    "GPUS",
    "PEAK_FLOPS",
    "Gpu",
    "count_parameters",
    "find_gpu",
    "matching_gpu",
    "parameters_by_part",
    "training_flops_per_token",
]
