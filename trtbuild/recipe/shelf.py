"""Recipes that come with trtbuild, by name, and recipes of the user, by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from trtbuild.errors import RecipeError
from trtbuild.recipe.binding import nearest
from trtbuild.recipe.contents import Recipe, parse

SUFFIX = ".yaml"
_LARGEST = 1_000_000
"""Bytes; a recipe has about a thousand."""


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with trtbuild; `name` is what `trtbuild run` takes."""

    name: str
    path: Path
    recipe: Recipe


def shelf() -> Path:
    """The folder of the recipes that come with trtbuild."""
    return Path(str(files("trtbuild.recipes")))


def shipped_paths() -> dict[str, Path]:
    """Name -> file of every recipe that comes with trtbuild, in folders too."""
    found = {path.name.removesuffix(SUFFIX): path for path in shelf().rglob(f"*{SUFFIX}")}
    return dict(sorted(found.items()))


def shipped() -> list[Shipped]:
    """All recipes that come with trtbuild, by name."""
    return [Shipped(name, path, load(str(path))) for name, path in shipped_paths().items()]


def load(name: str, sets: Sequence[str] = ()) -> Recipe:
    """The recipe of a path or of a name on the shelf, with overrides "section.key=value".

    Raises:
        RecipeError: no such recipe, a file that cannot be read, or everything that is wrong with it.
    """
    path = find(name)
    try:
        if path.stat().st_size > _LARGEST:
            raise RecipeError([f"{path} has more than {_LARGEST // 1000} kB; it is no recipe"])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise RecipeError([f"{path} cannot be read: {reason}"]) from error
    try:
        return parse(text, sets, folder=path.resolve().parent)
    except RecipeError as error:
        raise RecipeError(
            error.problems, hint=f"The recipe is {path}; `trtbuild show schema` says what it may hold."
        ) from error


def find(name: str) -> Path:
    """The file that a path or a shipped name means; a file wins.

    Raises:
        RecipeError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped_paths()
    if name.removesuffix(SUFFIX) in known:
        return known[name.removesuffix(SUFFIX)]
    near = nearest(name.removesuffix(SUFFIX), list(known))
    raise RecipeError(
        [f"there is no file and no shipped recipe {name}{near}"],
        hint="`trtbuild show recipes` lists those that come along.",
    )
