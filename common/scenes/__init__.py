"""The built-in world of all ten projects: solids on a floor, rendered by ray casting."""

from .clip import Clip, clips
from .dataset import Scenes
from .place import place
from .render import Rendered, render
from .scene import Scene
from .world import World

__all__ = ["Clip", "Rendered", "Scene", "Scenes", "World", "clips", "place", "render"]
