"""The recipe: one strict class, one file a section, and the messages about what is wrong in it."""

from replaykit.recipe.load import RECIPE_FILE, load_recipe
from replaykit.recipe.recipe import Recipe, need

__all__ = ["RECIPE_FILE", "Recipe", "load_recipe", "need"]
