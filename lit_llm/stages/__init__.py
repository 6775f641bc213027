"""The stages as functions: a configuration goes in, a result comes out; nothing of it is printed on stdout.

Each is in a file of its name: `from lit_llm.stages.pretrain import pretrain`.
"""
