"""Explanations of a wrong command line: one line that says what is wrong and names what was probably meant."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
import shlex

import yaml

from lit_llm.config import UserError
from lit_llm.config.yaml_text import DoubtfulYaml, read_yaml

# What nanoGPT, LitGPT, Lightning, transformers and TRL call it -> what it is called here: the first that a command has.
NAMES_ELSEWHERE = {
    other: ours
    for ours, others in {
        "optimizer.learning_rate": "lr max_lr peak_lr base_lr",
        "schedule.min_ratio": "min_lr min_lr_ratio",
        "schedule.name": "lr_scheduler lr_scheduler_type decay_lr scheduler",
        "schedule.warmup_steps": "warmup warmup_iters warmup_ratio lr_warmup_steps num_warmup_steps",
        "optimizer.name": "optim optimizer_name",
        "optimizer.weight_decay": "wd decay",
        "optimizer.beta1": "adam_beta1 beta_1",
        "optimizer.beta2": "adam_beta2 beta_2",
        "optimizer.eps": "adam_epsilon epsilon",
        "trainer.max_steps": "max_iters iters iterations num_iterations steps num_steps train_steps total_steps",
        "epochs trainer.max_steps": "epochs max_epochs num_epochs num_train_epochs epoch",
        "trainer.gradient_clip_val": "grad_clip gradient_clip max_grad_norm max_norm clip_grad_norm",
        "trainer.val_every_n_steps": "eval_interval eval_steps eval_iters val_check_interval eval_every val_interval",
        "trainer.save_every_n_steps": "save_steps save_interval checkpoint_interval save_every",
        "trainer.log_every_n_steps": "log_interval logging_steps log_every",
        "trainer.keep_last_checkpoints": "save_total_limit",
        "trainer.precision dtype": "bf16 fp16 mixed_precision amp torch_dtype",
        "trainer.activation_checkpointing": "gradient_checkpointing grad_checkpointing",
        "trainer.compile compile": "torch_compile",
        "trainer.devices": "gpus num_gpus n_gpu nproc_per_node",
        "trainer.accelerator accelerator": "device",
        "data.micro_batch_size": "per_device_train_batch_size device_batch_size gradient_accumulation_steps "
        "accumulate_grad_batches gradient_accumulation_iters",
        "data.batch_size batch_size": "batch bs train_batch_size global_batch_size",
        "data.validation_batch_size": "per_device_eval_batch_size eval_batch_size",
        "data.sequence_length context max_length": "block_size seq_len seq_length max_seq_len max_seq_length ctx_len "
        "context_length n_ctx model_max_length max_length",
        "data.num_workers num_workers": "dataloader_num_workers workers num_proc",
        "data.paths corpus.path texts": "dataset dataset_name dataset_path data_path data_dir train_file train_data "
        "train_dataset data_files",
        "data.validation_paths": "eval_dataset validation_file val_data eval_data val_dataset",
        "data.packing": "pack",
        "model.num_layers": "n_layer n_layers layers num_hidden_layers depth",
        "model.num_heads": "n_head n_heads heads num_attention_heads",
        "model.num_key_value_heads": "n_kv_head n_kv_heads num_kv_heads n_query_groups",
        "model.hidden_size": "n_embd n_embed d_model dim embed_dim width model_dim",
        "model.intermediate_size": "d_ff ffn_dim",
        "model.max_position_embeddings": "max_positions",
        "output_root output": "output_dir out_dir default_root_dir out save_dir",
        "init_from model checkpoint": "model model_name_or_path model_name base_model checkpoint_dir checkpoint "
        "model_path pretrained_model",
        "ckpt_path": "resume resume_from resume_from_checkpoint ckpt",
        "reference_model reference": "ref_model ref_model_path",
        "rewards": "reward_model reward_model_path reward_funcs",
        "kl_coefficient": "kl_coef init_kl_coef",
        "group_size num_samples": "num_generations num_return_sequences n",
        "max_new_tokens sampling.max_new_tokens": "max_tokens max_completion_length response_length max_length",
        "sampling.stop_strings": "stop",
        "prompts": "prompt start",
        "lora.rank": "lora_r r lora_rank use_peft",
        "lora.alpha": "lora_alpha",
        "lora.dropout": "lora_dropout",
        "lora.targets": "lora_target_modules target_modules",
        "quantize": "load_in_8bit load_in_4bit",
    }.items()
    for other in others.split()
}
NOTES = {
    "warmup_ratio": "in steps",
    "min_lr": "a share of the peak",
    "lr_warmup_steps": "in steps",
    "bf16": "bf16-mixed, or bfloat16 where a model is only used",
    "fp16": "bf16-mixed, or bfloat16 where a model is only used",
    "gradient_checkpointing": "none or full or every_n or selective",
    "gradient_accumulation_steps": "rows that a device reads at once; the rest of data.batch_size is accumulated",
    "accumulate_grad_batches": "rows that a device reads at once; the rest of data.batch_size is accumulated",
    "gradient_accumulation_iters": "rows that a device reads at once; the rest of data.batch_size is accumulated",
    "resume": "last goes on with the run",
    "resume_from_checkpoint": "last goes on with the run",
    "load_in_8bit": "int8",
    "load_in_4bit": "int4",
}
"""Remarks that are added to the answer for some of these names."""


def require_utf8(words: list[str]) -> None:
    """Refuse a command line with bytes that are not UTF-8: what is made of it, as records are, could not be written.

    Raises:
        UserError: names the first such word, with those bytes as \\xff.
    """
    for word in words:
        shown = os.fsencode(word).decode("utf-8", "backslashreplace")
        if word != shown:
            raise UserError(f"{shown} is not UTF-8, and options are read as UTF-8; rename the file")


def explain(message: str, keys: list[str], words: list[str]) -> str:
    """Turn a parser's complaint into one line that names the option that was probably meant.

    Args:
        message: what the parser says.
        keys: every option, dotted.
        words: the command line.
    """
    line = " ".join(message.split())
    if "codec can't decode" in line and _config_files(words):
        return f"{_config_files(words)}: not a YAML file of options (it is no text in UTF-8)"
    unknown = re.search(r"[Uu]nrecognized arguments: --([\w.\-]+)", line)
    if unknown:
        return _unknown_key(unknown.group(1), keys)
    alone = re.search(r"[Uu]nrecognized arguments: (\S+)", line)
    if alone:
        return _word_alone(alone.group(1))
    grouped = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line)
    if grouped:
        return _unknown_key(f"{grouped.group(1)}.{grouped.group(2)}", keys)
    inside = re.search(r"Parser key \"([\w.]+)\": .*Option '([\w.]+)' is not accepted", line)
    if inside:
        return _unknown_key(f"{inside.group(1)}.{inside.group(2)}", keys)
    nested = re.search(r"(?:Key|Option|option) ['\"]([\w.]+)['\"] (?:is not|does not)", line)
    if nested:
        return _unknown_key(nested.group(1), keys)
    not_group = re.search(r"Parser key \"([\w.]+)\": Unable to load config '(.*?)' - ", line)
    if not_group:
        meant = ""
        if not_group[1] == "model":
            meant = "; a model to start from is init_from, a known architecture model.preset"
        must = f"a group of options, or a YAML file of one{meant}{_doubt(not_group[2])}"
        return f"{not_group[1]} is {not_group[2]}; it must be {must}"
    if "Parser key" in line:
        return _wrong_value(line, keys, words)
    about_file = re.search(r"(?:Unexpected config: ?|Problems parsing config: )(.*)", line)
    if about_file:
        found = about_file.group(1) or "it is empty"
        return f"{_config_files(words)}: not a YAML file of options ({found})"
    return line


def _config_files(words: list[str]) -> str:
    """Return the files of options that the command line names."""
    files = [after for word, after in itertools.pairwise(words) if word == "--config"]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return ", ".join(files)


def _wrong_value(line: str, keys: list[str], words: list[str]) -> str:
    """Say what an option's value is and what it must be; `line` names the option by one or more "Parser key"."""
    key = ".".join(re.findall(r"Parser key \"([\w.]+)\":", line))
    item = re.search(r"dot import path string: (.*)|valid subclass of \w+\. Got value: (.*?) Subclass types", line)
    inner = re.search(r"value: NestedArg\(key='([\w.]+)'", line)
    if inner is not None and not key.endswith(f".{inner[1]}"):
        return _unknown_key(f"{key}.{inner[1]}", keys)
    if item is not None:
        like = "{path: texts/}" if key == "sources" else "{name: value}"
        return f"{key} has {item[1] or item[2]}; each of its entries must be a group of options, as '[{like}]'"
    given = re.search(r"Got value: (.*?)(?= - Expected| Given value type|$)", line)
    wanted = re.findall(r"Expected an? (.*?)(?=\. Got| - | Given|$)", line)
    if given is not None:
        wanted = wanted[:1]
    else:
        given = re.search(r"Given value: (.*)", line)
        wanted = ["group of options"] * ("valid subclass" in line) + wanted
    if given is None or not wanted:
        return f"{key}: {line.partition(': ')[2]}"
    kinds = [_type_in_words(each) for each in wanted]
    written = _written(key, words) or [given.group(1)]
    as_list = ""
    if key == "sources" and not written[0].startswith(("[", "{")):
        as_list = f", as '[{', '.join(f'{{path: {_list_item(each)}}}' for each in written)}]'"
    elif "a list" in kinds and not written[0].startswith(("[", "{")):
        as_list = f", as '[{', '.join(map(_list_item, written))}]'"
    must = f"{' or '.join(kinds)}{as_list or _doubt(written[0])}"
    if given.group(1) == "False" and kinds[0].startswith("off or "):
        must += " (YAML takes off for false: put it in quotes)"
    return f"{key} is {' '.join(written) if as_list else given.group(1)}; it must be {must}"


def _doubt(text: str) -> str:
    """Say why an option's list or group was not read as one, where YAML allows more than is."""
    try:
        read_yaml(text)
    except DoubtfulYaml as error:
        return f" ({error})"
    except yaml.YAMLError:
        pass
    return ""


def _written(key: str, words: list[str]) -> list[str]:
    """Return the words after an option, up to the next one; none where the option is not on the command line."""
    for place, word in enumerate(words):
        if word == f"--{key}":
            return list(itertools.takewhile(lambda each: not each.startswith("--"), words[place + 1 :]))
        if word.startswith(f"--{key}="):
            return [word.partition("=")[2]]
    return []


def _list_item(text: str) -> str:
    """Return a text or number as YAML's lists have it: in quotes where it would be read as something else."""
    try:
        read = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        read = None
    number = isinstance(read, list) and [type(each) for each in read] in ([int], [float])
    return text if (number or read == [text]) and "'" not in text else json.dumps(text, ensure_ascii=False)


def _word_alone(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"{word} stands alone; a file of options is read by --config {shlex.quote(word)}"
    return f"{word} stands alone; options are written as --NAME VALUE"


def _type_in_words(name: str) -> str:
    choices = re.search(r"Literal\[(.*)\]", name)
    if choices:
        return choices.group(1).replace("'", "").replace(", ", " or ")
    name = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", name)
    return {
        "NoneType": "null",
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }.get(name, "a " + name)


def _unknown_key(key: str, keys: list[str]) -> str:
    name = key.rpartition(".")[2].replace("-", "_").lower()
    if name == "hf_split":
        return f"there is no option {key}; write the split into the path, as hf:NAME::SPLIT or hf:NAME:CONFIG:SPLIT"
    for ours in NAMES_ELSEWHERE.get(name, "").split():
        if ours in keys and not any(known.rpartition(".")[2] == name for known in keys):
            note = f" ({NOTES[name]})" if name in NOTES else ""
            return f"there is no option {key}; here it is {ours}{note}"
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    same_name = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    after = "; an option of the stage's run stands after a lone --" if {"stage", "options"} <= {*keys} else ""
    return f"there is no option {key}; the nearest is {(same_name or near)[0]}{after}"
