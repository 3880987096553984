"""AP of automatic labels against a truth that no training sees: how good the teacher's work is."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from common.coco import evaluate as coco

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}


def label_quality(
    content: dict[str, Any],
    truth: dict[str, Any],
    kind: str,
    sigmas: Sequence[float] | None = None,
) -> dict[str, float]:
    """COCO's metrics of labels in percent: AP, AP50, ... (see `common.coco.evaluate`).

    content: of `choose`, whose crowds are no labels. truth: the content of a COCO-format file of
    all images that were labelled; images are told by their file names. kind: "boxes", "masks" or
    "keypoints", of which a joint that was dropped counts as one in the image's corner. sigmas: of
    the joints, unless they are COCO's 17.
    """
    ids = match_images(content["images"], truth)
    labels = [
        annotation | {"image_id": ids[annotation["image_id"]]}
        for annotation in content["annotations"]
        if not annotation["iscrowd"]
    ]
    return coco.evaluate(truth, labels, kind=KINDS[kind], sigmas=sigmas)


def match_images(
    images: list[dict[str, Any]], truth: dict[str, Any], where: str = "the truth"
) -> dict[int, int]:
    """Image id of the labels -> of the truth: by the path, or else by the name of the file alone.

    where: the truth's name in the ValueError for an image that it lacks.
    """
    listed = [(str(entry.get("file_name")), entry["id"]) for entry in truth["images"]]
    paths = dict(listed)
    names = [(PurePosixPath(path).name, number) for path, number in listed]
    last = dict(names) if len(dict(names)) == len(names) else {}
    ids = {}
    for entry in images:
        path = entry["file_name"]
        found = paths.get(path, last.get(PurePosixPath(path).name))
        if found is None:
            raise ValueError(
                f"{where} has no image {path}: give the annotations of the images that were "
                "labelled"
            )
        ids[entry["id"]] = found
    return ids


def restrict_truth(
    truth: dict[str, Any], images: list[dict[str, Any]], where: str = "the truth"
) -> dict[str, Any]:
    """The truth of these images alone, those without a label among them; see `match_images`."""
    wanted = set(match_images(images, truth, where).values())
    return truth | {
        "images": [entry for entry in truth["images"] if entry["id"] in wanted],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in wanted],
    }
