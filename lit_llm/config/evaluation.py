"""What a trained model is measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.bounds import given
from lit_llm.config.errors import UserError
from lit_llm.config.generation import LoadConfig
from lit_llm.config.sandbox import SandboxConfig


@dataclass
class EvaluateConfig(LoadConfig):
    """Measure a trained model: its loss on texts, shards and answers, its preferences, batteries and benchmark tasks.

    Of a reward model, preferences alone are measured: how often, and how surely, it ranks held-out pairs rightly.

    Under `begin_token` auto each of the texts begins with the token that its first one is predicted from. With
    `quantize`, texts, shards, answers and preferences are measured with the full model as well, and the difference
    is told.
    """

    texts: list[str] = field(default_factory=list)
    """Documents to predict: files (.txt, .jsonl, .parquet), folders, globs or hf:NAME[:CONFIG[:SPLIT]], as in
    hf:NAME::test (train unless given); each is one source."""
    text_field: str = "text"
    """Field of a .jsonl, .parquet or Hugging Face row that holds the text."""
    end_of_text: bool = True
    """Predict the end-of-text token after each document of texts, too, as pretraining does."""
    shards: list[str] = field(default_factory=list)
    """Folders written by prepare_data, read as pretraining reads them: one stream, in which a window goes on from one
    document into the next."""
    split: Literal["train", "validation", "test"] = "validation"
    """Split of the shards."""
    mask_documents: bool = False
    """Keep attention and positions inside each document of a window of shards; as data.mask_documents of the run."""
    verify: bool = True
    """Check the sha256 of every shard first."""
    context: int | None = None
    """Tokens in a window, all that a prediction can look at; null: the model's context."""
    stride: int | None = None
    """Tokens that a window is moved on by; what is new in it is scored, so that every token is scored once, with at
    least context - stride tokens before it where the document has them. Null: half of the context. The context itself
    is the fastest, and what validation in pretraining does."""
    max_documents: int | None = None
    """Read only the first so many documents of each source; null: all."""
    max_tokens: int | None = None
    """Score only the first so many tokens of each source; null: all."""
    answers: list[str] = field(default_factory=list)
    """Files of conversations, as sft.py reads them: the loss of the assistant's tokens. Too long ones are cut off."""
    preferences: list[str] = field(default_factory=list)
    """Files of preferences, as dpo.py reads them: how often the chosen answer is likelier than the rejected one, or has
    the higher reward. Texts that are longer than the model's context are cut off."""
    reference: str | None = None
    """Model folder or run that DPO started from: preferences are measured by the implicit reward as well, which is
    beta log(model / reference) of an answer. It is never quantized."""
    beta: float | None = None
    """Scale of the implicit reward; null: that of the model's DPO run where the model lies in its folder, else 0.1."""
    battery: str | None = None
    """Batteries of tasks on local files, separated by commas: base (pretrained models), chat (assistants), code, or a
    YAML file of your own tasks. Answers are kept beside the report, so that a battery that was stopped goes on."""
    battery_data: str | None = None
    """Folder with the files of the battery's tasks; null: the folder of the YAML file."""
    battery_tasks: str | None = None
    """Names of the tasks of the batteries to take, separated by commas; null: all of them."""
    compare_to: str | None = None
    """Folder of an earlier evaluation with the same battery, of another model: differences are paired, question by
    question."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of the lm-evaluation-harness, as arc_easy (needs the extra `eval`)."""
    tasks_folder: str | None = None
    """Folder with task definitions of your own for the lm-evaluation-harness."""
    num_fewshot: int | None = None
    """Solved examples before each question of a task; null: as the task has it."""
    limit: int | None = None
    """Read only the first so many questions of each task, and of each part of a battery's; null: all."""
    chat_template: bool = False
    """Put the questions of tasks, and of all tasks of a battery, as turns of a conversation."""
    batch_size: int = 8
    """Windows, conversations, pairs or requests read at once; results do not depend on it."""
    devices: int = 1
    """Processes on this machine that share the questions of a battery, each with the whole model, on a GPU of its own
    where there are GPUs. Under torchrun or srun, on any number of machines, they are those that it has started."""
    output: str | None = None
    """Folder for evaluation.json, evaluation.md and evaluation.html; null: "evaluation" in the run folder, or else in
    the model folder."""
    overwrite: bool = False
    """Replace an evaluation that is already there, and drop a battery's answers that other things were asked for."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """Where the programs of a battery's answers run."""
    seed: int = 0
    """Seed of the resamples behind the intervals, of the tasks, and of answers that a battery draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("context", "stride", "max_documents", "max_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1, or null")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.devices < 1:
            raise UserError(f"devices is {self.devices}; it must be at least 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"num_fewshot is {self.num_fewshot}; it must be at least 0, or null")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be at least 0")
        if self.split not in ("train", "validation", "test"):
            raise UserError(f"split is {self.split!r}; it must be train, validation or test")
        if self.context is not None and self.stride is not None and self.stride > self.context:
            raise UserError(f"stride {self.stride} is more than context {self.context}, which would leave tokens out")
        self._refuse_without("texts or shards", "context", "stride", "max_documents", "max_tokens")
        self._refuse_without("texts", "text_field", "end_of_text")
        self._refuse_without("shards", "split", "mask_documents", "verify")
        self._refuse_without("preferences", "reference")
        self._refuse_without("reference", "beta")
        if self.beta is not None and not 0 < self.beta < math.inf:
            raise UserError(f"beta is {self.beta}; it must be above 0, or null")
        if self.begin_token != "auto" and not (self.texts or self.battery or self.tasks):
            raise UserError(
                "begin_token is given, but no texts or tasks or battery, which alone it is for; give them, or leave it"
            )
        self._refuse_without("tasks", "tasks_folder", "num_fewshot")
        self._refuse_without("tasks or battery", "limit", "chat_template")
        self._refuse_without("battery", "battery_data", "battery_tasks", "compare_to")
        self.check_shared(self.devices > 1)
        if self.sandbox != SandboxConfig() and not self.battery:
            raise UserError("sandbox is given, but no battery, which alone it is for; give battery, or leave it")

    def check_shared(self, shared: bool) -> None:
        """Refuse what several processes cannot share.

        Args:
            shared: whether there are several.

        Raises:
            UserError: something but a battery is asked for.
        """
        given = [name for name in ("texts", "shards", "answers", "preferences", "tasks") if getattr(self, name)]
        if shared and (given or not self.battery):
            raise UserError(
                "several processes share the questions of a battery and nothing else: "
                + (f"evaluate {' and '.join(given)} by a command of its own" if given else "give battery")
                + ", or in one process"
            )

    def _refuse_without(self, needed: str, *names: str) -> None:
        """Refuse options that say how something is measured that is not asked for."""
        if any(getattr(self, each) for each in needed.split(" or ")):
            return
        if found := given(self, *names):
            raise UserError(f"{found[0]} is given, but no {needed}, which alone it is for; give {needed}, or leave it")

    def check_reward_model(self, name: str) -> None:
        """Refuse what a model that gives scores cannot be asked.

        Args:
            name: what the model is called in the message.

        Raises:
            UserError: something but preferences is given, or the model is to be quantized.
        """
        if self.reference is not None:
            raise UserError(
                f"reference is given, but {name} is a reward model, whose scores are measured as they are: a reference "
                "belongs to a policy that DPO has trained; leave reference out"
            )
        for option in ("texts", "shards", "answers", "battery", "tasks"):
            if getattr(self, option):
                raise UserError(
                    f"{option} cannot be had of {name}, which is a reward model: it gives scores, not text; leave "
                    f"{option} out, and give preferences"
                )
        if self.quantize != "none":
            raise UserError(f"quantize cannot be had of {name}, which is a reward model; leave it out")
