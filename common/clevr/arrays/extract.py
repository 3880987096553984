"""Features of images from a ResNet's middle layers, as the public code extracts them.

Images become RGB of exactly 224 x 224 by bicubic resizing, whatever their proportions; ResNet-101
up to and including `layer3` turns them into maps of 1024 x 14 x 14.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...data import eval_loader
from ...files import write
from ...images import IMAGE_SUFFIXES, read_image
from ...run import sealed
from .features import H5_SUFFIXES, h5py_for

SIZE = 224  # pixels
MEAN = (0.485, 0.456, 0.406)
STD = {
    "iep": (0.229, 0.224, 0.224),  # sic: the public code's third value, in released models too
    "imagenet": (0.229, 0.224, 0.225),
}
DEPTHS = (18, 34, 50, 101, 152)


class Extractor(nn.Module):
    """A ResNet of torchvision up to `layer<stage>`, in evaluation mode for good.

    weights: "IMAGENET1K_V1" or another name of torchvision's, which are downloaded; a file with a
    state_dict of torchvision's ResNet, or with more around it under "state_dict" or "model"; or
    None for the random initialisation. std: a key of `STD`; the published models need "iep".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        depth: int = 101,
        stage: int = 3,
        weights: str | Path | None = "IMAGENET1K_V1",
        std: str = "iep",
    ) -> None:
        super().__init__()
        if depth not in DEPTHS or stage not in (1, 2, 3, 4):
            raise ValueError(
                f"there is no ResNet-{depth} up to layer{stage}: choose a depth of "
                f"{', '.join(map(str, DEPTHS))} and a stage from 1 to 4"
            )
        if std not in STD:
            raise ValueError(f"std is {std!r}: choose one of {', '.join(STD)}")
        resnet = _resnet(depth, weights)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.relu, self.maxpool = resnet.relu, resnet.maxpool
        self.layers = nn.Sequential(*(getattr(resnet, f"layer{k}") for k in range(1, stage + 1)))
        expansion = 1 if depth < 50 else 4
        side = SIZE // 4 >> (stage - 1)
        self.shape = (64 * 2 ** (stage - 1) * expansion, side, side)  # C, H, W
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD[std]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Extractor":
        """Stay in evaluation mode: batch statistics would make features depend on their batch."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) float32 of images (N, 3, 224, 224) uint8."""
        if images.dtype != torch.uint8 or images.shape[1:] != (3, SIZE, SIZE):
            raise ValueError(
                f"the extractor takes uint8 (N, 3, {SIZE}, {SIZE}), not {images.dtype} "
                f"{tuple(images.shape)}: see read_resized"
            )
        x = (images.float() / 255 - self.mean) / self.std
        return self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))


def read_resized(path: str | Path) -> Tensor:
    """An image file as uint8 (3, 224, 224) RGB, resized by Pillow's bicubic filter."""
    from PIL import Image

    pixels = Image.fromarray(read_image(path).permute(1, 2, 0).contiguous().numpy())
    array = np.array(pixels.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def image_files(folder: str | Path) -> list[Path]:
    """The images of a folder by the number at the end of their names, which must be 0, 1, 2, ...

    So the row of a map is the `image_index` of the questions. ValueError names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        number = re.search(r"(\d+)$", file.stem)
        if number is None:
            raise ValueError(
                f"{file} has no number at the end of its name, such as CLEVR_val_000012.png: give "
                "a list of files in the order of their image_index instead of the folder"
            )
        if int(number[1]) in files:
            raise ValueError(f"{file} and {files[int(number[1])]} have the same number")
        files[int(number[1])] = file
    if not files:
        raise ValueError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    missing = next((i for i in range(len(files)) if i not in files), None)
    if missing is not None:
        raise ValueError(
            f"{folder} has {len(files)} images, but none with the number {missing}: rows of the "
            "features are numbered 0, 1, 2, ... without a gap"
        )
    return [files[i] for i in range(len(files))]


def extract(
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    half: bool = False,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = True,
) -> tuple[int, ...]:
    """Write the features of a folder or list of images to a .npy or .h5 file; return their shape.

    The row of a map is the number of the image's file (see `image_files`), or its place in the
    list. half: store float16. The file appears whole or not at all.
    """
    out = Path(out)
    if out.suffix not in (".npy", *H5_SUFFIXES):
        raise ValueError(f"{out} has the suffix {out.suffix!r}: choose .npy or .h5")
    several = image_files(images) if isinstance(images, str | Path) else images
    files = [Path(file) for file in several]
    if not files:
        raise ValueError(f"there are no images to extract the features of for {out}")
    shape = (len(files), *extractor.shape)

    def fill(stream: IO[bytes]) -> None:
        rows = _npy_rows if out.suffix == ".npy" else _h5_rows
        loader = eval_loader(_Images(files), batch_size, workers=workers, rank=0, world=1)
        with rows(stream, shape, np.dtype(np.float16 if half else np.float32), out) as append:
            for maps in _maps(loader, extractor.to(device), device, len(files), progress):
                append(maps)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, fill)
    except OSError as error:
        raise OSError(f"{out} could not be written ({error.strerror or error})") from error
    return shape


def _maps(
    loader: Iterable[Tensor],
    extractor: Extractor,
    device: torch.device | str,
    total: int,
    progress: bool,
) -> Iterator[np.ndarray]:
    """Feature maps float32 of each batch of images, behind a progress bar on a terminal."""
    from tqdm import tqdm

    bar = tqdm(total=total, desc="extracting features", unit="image", disable=not progress or None)
    with bar, torch.inference_mode():
        for images in loader:
            yield extractor(images.to(device, non_blocking=True)).float().cpu().numpy()
            bar.update(len(images))


class _Images(Dataset):
    """Image files as the extractor takes them; `files` lets errors name them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [str(file) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return read_resized(self.files[index])


@contextmanager
def _npy_rows(
    stream: IO[bytes], shape: tuple[int, ...], kind: np.dtype, out: Path
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends rows to a .npy file."""
    # Not a memory map: a full disk would end the process without a word.
    header = {"descr": kind.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)

    def append(maps: np.ndarray) -> None:
        stream.write(_as(kind, maps, out).tobytes())

    yield append


@contextmanager
def _h5_rows(
    stream: IO[bytes], shape: tuple[int, ...], kind: np.dtype, out: Path
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends rows to the data set `features` of an H5 file."""
    with h5py_for(out).File(stream, "w") as file:
        data = file.create_dataset("features", shape, kind)
        done = 0

        def append(maps: np.ndarray) -> None:
            nonlocal done
            data[done : done + len(maps)] = _as(kind, maps, out)
            done += len(maps)

        yield append


def _as(kind: np.dtype, maps: np.ndarray, out: Path) -> np.ndarray:
    """Maps of another precision; ValueError where float16 cannot hold a value."""
    with np.errstate(over="ignore"):
        stored = maps.astype(kind)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{out}: a feature of {np.abs(maps).max():.3g} does not fit {kind}: check the "
            "extractor's weights, or store float32 (half=False, prepare.py --float32)"
        )
    return stored


def _resnet(depth: int, weights: str | Path | None) -> Any:
    """The ResNet of torchvision with this depth and these weights."""
    from torchvision import models

    name = f"resnet{depth}"
    if weights is None:
        return models.get_model(name, weights=None)
    if Path(weights).is_file():
        resnet = models.get_model(name, weights=None)
        _fill(resnet, Path(weights), name)
        return resnet
    names = [weight.name for weight in models.get_model_weights(name)]
    if weights not in names:
        raise ValueError(
            f"weights {str(weights)!r} is neither a file nor one of torchvision's for {name}: "
            f"{', '.join(names)}"
        )
    return models.get_model(name, weights=weights)


def _fill(resnet: nn.Module, path: Path, name: str) -> None:
    """Load a file's weights into the ResNet; those of a classifier may be missing."""
    state: Any = sealed.load(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} does not hold a state_dict of {name}")
    own = resnet.state_dict()
    counters = [key for key in own if key.endswith("num_batches_tracked")]
    wanted = {key for key in own if not key.startswith("fc.")} - set(counters)
    missing = sorted(wanted - state.keys())
    wrong = sorted(key for key in wanted & state.keys() if state[key].shape != own[key].shape)
    if missing or wrong:
        raise ValueError(
            f"{path} is no state_dict of {name}: {len(missing)} of {len(wanted)} tensors are "
            f"missing and {len(wrong)} have another shape, first {(missing + wrong)[0]}"
        )
    resnet.load_state_dict({key: state[key] for key in wanted}, strict=False)
