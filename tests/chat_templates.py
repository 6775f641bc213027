"""Chat templates in the manner of published models, and the special tokens that they use."""

from __future__ import annotations

from typing import Any

from foreign_tokenizers import EOS
from tokenizers import AddedToken

LLAMA3_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]

LLAMA3 = (
    "{%- set today = '2024' %}"
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nYear: ' + today + '\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
    "{{- '<|eot_id|>' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN2 = """{% for message in messages %}
    {%- if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Thoughts are kept in the last turn only, which has an empty thought where it has none.
QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
# The system's message stands in the user's last turn; turns have to alternate; there is no generation prompt.
MISTRAL = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{% set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if system is defined and message == (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}
            {{- '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (  # whose tokens swallow the white space after them
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The system's message stands in the last turn, if that is a user's; there is no generation prompt.
SYSTEM_IN_LAST_TURN = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for message in messages if message.role != 'system' %}{% if message.role == 'user' %}"
    "<ask> {% if loop.last and system %}{{ system + '\n\n' }}{% endif %}{{ message.content }}</ask>"
    "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"
)
# The last answer begins with its thought, where it has one; tools and their calls are written as JSON.
THINKING = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.reasoning_content and loop.last %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}"
    "{% endif %}{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Generation prompts that open a thought. Earlier answers are written without theirs; of the last answer, "last thought"
# writes it, and "no thought" does not.
_ANSWER = "{% set content = message.content.split('</think>')[-1].lstrip('\n') %}"
OPEN_THOUGHTS = {
    "last thought": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
        + _ANSWER
        + "{% if loop.last %}{{ '<think>\n' }}{% if '</think>' in message.content %}"
        "{{ message.content.split('</think>')[0].split('<think>')[-1].strip() }}{% endif %}"
        "{{ '\n</think>\n\n' }}{% endif %}{{ content }}{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    ),
    "no thought": (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
        "{{ '<|im_start|>' + message.content }}{% else %}"
        + _ANSWER
        + "{{ '<|im_start|>A' + content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>A<think>\n' }}{% endif %}"
    ),
}
# The same with the system's message in the user's last turn, so that the turns before an answer are written otherwise
# once others follow.
OPEN_THOUGHT_SYSTEM_LAST = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for message in messages if message.role != 'system' %}{% if message.role == 'user' %}[user]"
    "{% if system and message == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{{ system }} {% endif %}{{ message.content }}{% else %}"
    + _ANSWER
    + "{{ '[bot]' + content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[bot]<think>\n' }}{% endif %}"
)
PHI_TOKENS = [AddedToken(name, rstrip=True) for name in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")]
# form of the tokenizer, its special tokens, template, what ends a turn, how an assistant's words look
TEMPLATES: dict[str, tuple[str, list[Any], str, str]] = {
    "llama3": ("llama3", LLAMA3_TOKENS, LLAMA3, "<|eot_id|>"),
    "qwen2": ("qwen", CHATML_TOKENS, QWEN2, "<|im_end|>"),
    "qwen3": ("qwen", CHATML_TOKENS, QWEN3, "<|im_end|>"),
    "mistral": ("llama2", ["[INST]", "[/INST]"], MISTRAL, EOS),
    "llama2": ("llama2", [], MISTRAL, EOS),
    "metaspace": ("metaspace", [], MISTRAL, EOS),
    "gemma": ("gemma", ["<start_of_turn>", "<end_of_turn>"], GEMMA, "<end_of_turn>"),
    "phi": ("llama2", PHI_TOKENS, PHI, "<|end|>"),
}
