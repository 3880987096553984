"""The built-in world of all ten projects: solids on a floor, rendered by ray casting.

world       everything that may vary, as one value
place       a scene generated (scene: what it is made of)
render      scenes as images; shade: what colour a ray sees (gloss: on a solid, ground: elsewhere),
            cast: which solid a ray meets (shapes, made of primitives)
dataset     rendered scenes with their labels, from cache
annotate    boxes, keypoints and CLEVR's scene graph read off scenes
clip        scenes in motion
"""

from .clip import Clip, clips
from .dataset import Scenes
from .place import place
from .render import Rendered, render
from .scene import Scene
from .world import World

__all__ = ["Clip", "Rendered", "Scene", "Scenes", "World", "clips", "place", "render"]
