"""Prepare Visual Genome's boxes, and cut a detector for the two stages of Sec. 5.

    python prepare.py vg root=/data/vg coco=/data/coco [synsets=FILE.json]
    python train.py experiment=vg_boxes data.root=/data/vg                            # stage 1
    python prepare.py cut outputs/vg_boxes/RUN out=vg_cut.pt [rows=81]
    python train.py experiment=vg_masks data.root=/data/coco                          # stage 2
    python prepare.py restore outputs/vg_masks/RUN cut=vg_cut.pt out=vg_masks.pt

`vg` writes ROOT/annotations/instances_vg3k_{train,val,test}.json from objects.json, image_data.json
and the images of Visual Genome. `cut` takes a run's folder or any weight file that init= takes, and
keeps the rows of COCO's classes; `restore` puts the others back, so that all 3,001 classes have
masks. Every file appears whole or not at all. Exit code 0: done, 2: bad data, in one sentence.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from common.config import run as run_command
from maskx_rcnn.inputs import visual_genome
from maskx_rcnn.weights import surgery

# What a command takes: a run or file, options that it needs, and others.
COMMANDS = {
    "vg": ("", ("root", "coco"), ("synsets",)),
    "cut": ("RUN", ("out",), ("rows",)),
    "restore": ("RUN", ("cut", "out"), ()),
}
ROWS = 81  # COCO's classes and the background


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("help", "-h", "--help"):
        print(__doc__)
        return
    command, source, options = parse(words)
    if command == "vg":
        root, coco = Path(options["root"]), Path(options["coco"])
        visual_genome.build(root, coco, synsets=options.get("synsets", ""))
        return
    out = Path(options["out"])
    if command == "restore":
        surgery.restore(source, Path(options["cut"]), out)
    else:
        rows = options.get("rows", str(ROWS))
        if not rows.isdecimal():
            raise ValueError(f"rows={rows}: give a number of classes, the background included")
        surgery.cut(source, out, int(rows))


def parse(words: Sequence[str]) -> tuple[str, str, dict[str, str]]:
    """Command, run or file, options; ValueError with the usage for what does not fit."""
    command, *rest = words
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1) or [", ".join(COMMANDS)]
        raise ValueError(f"{command} is unknown; did you mean {near[0]}?")
    subject, needed, others = COMMANDS[command]
    usage = " ".join(
        ["python prepare.py", command]
        + [subject] * bool(subject)
        + [f"{name}=..." for name in needed]
        + [f"[{name}=...]" for name in others]
    )
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    plain = [word for word in rest if "=" not in word]
    strange = [name for name in options if name not in (*needed, *others)]
    missing = [name for name in needed if not options.get(name)]
    if len(plain) != bool(subject) or strange or missing:
        faults = [f"{name} is unknown" for name in strange]
        faults += [f"{name}= is missing" for name in missing]
        raise ValueError(f"{'; '.join(faults) or 'one run or file is expected'}: {usage}")
    return command, "".join(plain), options


if __name__ == "__main__":
    run_command(main)
