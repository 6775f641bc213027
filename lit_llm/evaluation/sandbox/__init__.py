"""Programs that a model has written are run here, apart from everything else."""

from lit_llm.evaluation.sandbox.isolation import UNPROTECTED
from lit_llm.evaluation.sandbox.run import Outcome, Program, run_program, run_programs, usable_isolation

__all__ = ["UNPROTECTED", "Outcome", "Program", "run_program", "run_programs", "usable_isolation"]
