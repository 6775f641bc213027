"""Say what a pretraining recipe needs and costs, without running it. See --help for every option."""

from lit_llm.cli import main
from lit_llm.cli.plan import plan
from lit_llm.config import PlanConfig

if __name__ == "__main__":
    main(PlanConfig, plan)
