"""Held-out images with their hashtags, the labels these stand for, and the predictions."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from common import dist
from common.draw import TEXT_HEIGHT, Color, grid, save_png
from common.images import UnreadableImage

from ..config import Config
from ..data import Hashtags
from ..model import normalise
from ..shards.index import load_index

COLUMNS = 4
SIDE = 160  # pixels of an image that is drawn, and of the text beside it
LINE = TEXT_HEIGHT + 6
GUESSES = 3  # labels that are shown of a prediction
GREEN: Color = (25, 130, 60)
GREY: Color = (110, 110, 110)
BLACK: Color = (0, 0, 0)


@dataclass(frozen=True)
class Example:
    """An image, what people wrote and what the network says."""

    image: Tensor  # uint8 (3, H, W)
    written: Sequence[str]  # the hashtags
    labels: Sequence[str]  # that they stand for
    predicted: Sequence[tuple[str, float]]  # labels with their probabilities, the likeliest first


def draw_predictions(path: Path, cfg: Config, data: Hashtags, model: nn.Module) -> None:
    """Write a PNG of `test.drawn` held-out images; nothing where there are none."""
    examples = find_examples(cfg, data, model)
    if examples:
        save_png(draw_examples(examples), path)


@torch.no_grad()
def find_examples(cfg: Config, data: Hashtags, model: nn.Module) -> list[Example]:
    """Held-out images, from head to tail, with what `model` makes of them; it is left as it was."""
    tagged, images = data.tagged, read_images(cfg, data)
    if not images:
        return []
    pixels = torch.stack(list(images.values()))
    training = model.training
    model.eval()
    inputs = normalise(pixels.to(dist.device()), cfg.network.mean, cfg.network.std)
    logits = model(inputs).float().cpu()
    model.train(training)
    scores = logits.sigmoid() if cfg.loss.kind == "sigmoid" else logits.softmax(1)
    names = tagged.vocabulary.names
    best = scores.topk(min(GUESSES, len(names)))
    return [
        Example(
            image,
            read_written(data, index),
            [names[label] for label in tagged.labels(index)],
            [(names[label], value) for label, value in zip(guesses, values, strict=True)],
        )
        for image, index, guesses, values in zip(
            pixels, images, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def read_images(cfg: Config, data: Hashtags) -> dict[int, Tensor]:
    """Held-out images uint8 (3, S, S) to be drawn, by their indices."""
    images = {}
    for index, place in choose(data, cfg.test.drawn):
        try:
            images[index] = data.held_out[place][0]
        except UnreadableImage:  # `score_hashtags` has named it
            if cfg.data.bad_images == "raise":
                raise
    return images


def choose(data: Hashtags, count: int) -> list[tuple[int, int]]:
    """Indices and places of held-out images: evenly out of all, ordered by their rarest label."""
    order = data.held_out.order
    if order is None:
        return []
    tagged = data.tagged
    rarest = [int(tagged.counts[tagged.labels(index)].min()) for index in order.tolist()]
    places = sorted(range(len(rarest)), key=lambda place: -rarest[place])
    count = min(count, len(places))
    return [
        (int(order[place]), place)
        for place in (places[(2 * k + 1) * len(places) // (2 * count)] for k in range(count))
    ]


def read_written(data: Hashtags, index: int) -> list[str]:
    """The hashtags of an image, in normal form."""
    shards = data.tagged.shards
    shard, place = shards.locate(index)
    entry = load_index(shards.paths[shard])
    return [entry.table[tag] for tag in entry.raw.row(place)]


def draw_examples(examples: Sequence[Example]) -> Tensor:
    """Images in rows, each under its hashtags and beside labels and predictions; (3, h, w) uint8.

    A prediction is green where it is one of the image's labels.
    """
    cells = [draw_example(example) for example in examples]
    titles = [shorten("#" + " #".join(example.written)) for example in examples]
    return grid(cells, COLUMNS, titles=titles)


def draw_example(example: Example) -> Tensor:
    """One image, enlarged or made smaller, with the text at its right side."""
    height, width = example.image.shape[1:]
    factor = SIDE / max(height, width)
    mode = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX
    image = to_pil_image(example.image.cpu())
    image = image.resize((max(1, round(factor * width)), max(1, round(factor * height))), mode)
    sheet = Image.new("RGB", (2 * SIDE, SIDE), "white")
    sheet.paste(image, (0, 0))
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_HEIGHT)
    own = set(example.labels)
    lines = [("labels", GREY), *((name, BLACK) for name in example.labels), ("predicted", GREY)]
    lines += [
        (f"{value:.2f} {name}", GREEN if name in own else BLACK)
        for name, value in example.predicted
    ]
    for i, (text, color) in enumerate(lines[: SIDE // LINE]):
        canvas.text((SIDE + 6, i * LINE), shorten(text, 22), color, font)
    return pil_to_tensor(sheet)


def shorten(text: str, most: int = 44) -> str:
    """A text in letters that the font has, cut at `most` of them."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = plain.encode("ascii", "replace").decode()
    return plain if len(plain) <= most else plain[: most - 3] + "..."
