"""Recipes: one strict YAML file says everything from a model to a served repository.

document.py   YAML text -> nodes that know their line; nothing is guessed, no key is given twice         pure
binding.py    nodes <-> frozen dataclasses, by their fields and type hints; every problem together        pure
contents.py   what a recipe holds: the options of the stages themselves, and what belongs together        pure
schema.py     the same dataclasses -> JSON schema, for editors                                            pure
shelf.py      recipes that come with trtbuild, and recipes from a path                                    reads files
"""
