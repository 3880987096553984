"""The built-in clips, clips of a list of videos, and COCO's images."""
