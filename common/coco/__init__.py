"""Data in COCO's format: `dataset` reads it, `evaluate` scores, `check_data` looks through a set.

Below them: `files` finds the files of a split, `fields` checks their structure, `instances` and
`masks` what is annotated.
"""
