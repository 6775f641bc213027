"""Uploads to the Hugging Face Hub, through huggingface_hub; HF_ENDPOINT names another one."""

from __future__ import annotations

from pathlib import Path

from lit_llm.config import UserError

_OF_A_MODEL = (
    *("README.md", "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja", "adapter_config.json", "*.py"),
    *("model.gguf", "Modelfile"),
)
"""The files that are uploaded from a model folder. Whatever else lies there is not meant for others."""


def check_token() -> None:
    """Refuse to go on without a token.

    Raises:
        UserError: there is none, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise UserError("push_to_hub needs huggingface_hub: pip install huggingface_hub") from error
    if get_token() is None:
        raise UserError("push_to_hub needs a token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN")


def push(path: Path, name: str, *, private: bool) -> str:
    """Upload a model folder, or a GGUF file, to a repository of the Hub, which is made if it is not there.

    Args:
        path: the folder or the file.
        name: USER/NAME.
        private: whether a new repository is for its owner alone.

    Returns:
        The address of its page.

    Raises:
        UserError: the Hub refuses, or cannot be reached; what was written stays.
    """
    from huggingface_hub import HfApi, errors

    refusals = (errors.HfHubHTTPError, errors.HFValidationError, errors.HTTPError, OSError)

    is_file = path.is_file()
    card = path.parent / "README.md"
    alone = [path.name, *(["README.md"] if is_file and _is_ours(card) else [])]
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=path.parent if is_file else path,
            allow_patterns=alone if is_file else list(_OF_A_MODEL),
            commit_message="Upload a model of lit_llm",
        )
    except refusals as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        raise UserError(f"cannot upload {path} to {name}, and it stays here: {'; '.join(lines[:3])}") from error
    return str(address)


def _is_ours(card: Path) -> bool:
    return card.is_file() and "lit_llm" in card.read_text(encoding="utf-8", errors="replace")
