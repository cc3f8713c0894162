"""Recipes for well-known models; installed as `trtbuild.recipes`. `trtbuild show recipes` lists them."""
