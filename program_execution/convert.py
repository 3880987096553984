"""Convert a checkpoint of the public code (arXiv 1705.03633) into a file of this repository.

    python convert.py execution_engine_18k.pt engine.pt
    python convert.py execution_engine_18k.pt engine.pt --vocabulary vocab.json

The new file holds plain values and tensors alone, so that `torch.load` reads it as it is;
`weights.load` gives its networks. The old one is read without running anything in it. Exit code 0:
done, 2: the file cannot be converted, in one sentence.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from common import files
from common.config import run as run_command
from program_execution.weights import formats


def main(words: Sequence[str] | None = None) -> None:
    """Convert, and say what the file held."""
    parser = argparse.ArgumentParser(prog="python convert.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, help="the old checkpoint")
    parser.add_argument("out", type=Path, help="the new file")
    parser.add_argument("--vocabulary", type=Path, help="also write the file's vocabularies here")
    args = parser.parse_args(words)
    models = formats.load(args.source)
    if args.vocabulary and not models.vocabulary:
        raise ValueError(f"{args.source} holds no vocabulary: leave --vocabulary out.")
    formats.save(models, args.out)
    for name in models.options:
        parameters = sum(each.numel() for each in getattr(models, name).parameters())
        print(f"{name}: {parameters:,} parameters")
    if args.vocabulary:
        files.write_text(args.vocabulary, json.dumps(models.vocabulary, indent=1) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_command(main)
