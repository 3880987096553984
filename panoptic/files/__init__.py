"""Panoptic data on disk: COCO's panoptic format, and formats that are converted to or from it.

COCO's: `coco.py` reads and writes, `entries.py` checks, `pixels.py` is for PNGs, `ids.py` for
segment ids, `categories.py` for classes. Others: `two_channel.py`, `semantic.py`, `detection.py`,
and as distributed `cityscapes.py`, `ade20k.py` and `vistas.py`, whose common shape is `raw.py`.
"""
