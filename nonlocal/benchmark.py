"""Ours beside the usual ways: every speed that the README claims.

    python benchmark.py                                  # all; some minutes on two cores
    python benchmark.py what=block frames=[4,16] repeats=3
    python benchmark.py what=dot threads=1 out=dot.json
    python benchmark.py what=block device=cuda batch=8   # bfloat16

The contestants run by turns in one process, each round another one first, after a check that they
give the same results. `theirs / ours` is the ratio of the medians: above 1, ours is faster. Where
other work shares the cores, OMP_WAIT_POLICY=PASSIVE keeps waiting threads from blocking them.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common import timing
from common.config import read_options, require_range
from common.config import run as run_command
from common.timing import Calls, Row
from nonlocal_.block import Block, NonLocalBlock
from nonlocal_.clips.readers import open_video
from nonlocal_.model import Network, build_network
from nonlocal_.net.resnet import VideoNetwork

MODES = {"block": "embedded_gaussian", "dot": "dot_product", "concat": "concatenation"}


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | block | dot | concat | clips | c2d
    repeats: int = 5
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    amp: bool | None = None  # bfloat16; not given: on a GPU only
    batch: int = 1  # clips
    channels: int = 512  # of res3
    # Those that the block sees: a clip of 32 frames has 4, of 128 frames 16, each 28 x 28.
    frames: list[int] = field(default_factory=lambda: [4, 16, 32])
    video: str = ""  # of `clips`; by default two are written
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        for name in ("batch", "channels"):
            require_range(name, getattr(self, name), 1)
        if not self.frames or min(self.frames) < 1:
            raise ValueError(f"frames={self.frames}: give numbers from 1, like [4,16].")

    def autocast(self) -> torch.autocast:
        """Precision of the networks."""
        amp = self.device == "cuda" if self.amp is None else self.amp
        return torch.autocast(self.device, torch.bfloat16, enabled=amp)


def block(options: Options) -> list[Row]:
    """Embedded gaussian block at res3 with `channels`, 512: output, gradients of input and weights.

    Theirs is the same block by the matrix of weights; "queries x keys" is the size of the matrix.
    The memory includes the gradients.
    """
    return run_block("block", options)


def dot(options: Options) -> list[Row]:
    """The same of the dot product, whose matrices ours multiplies in the other order."""
    return run_block("dot", options)


def concat(options: Options) -> list[Row]:
    """The same of the concatenation, which ours sums by sorting."""
    return run_block("concat", options)


def clips(options: Options) -> list[Row]:
    """Eight random clips of 8 frames, every 8th, from a video, by PyAV in one thread.

    Ours decodes from the key frame before each clip, theirs every frame. The videos have 300 frames
    of 256 x 340, and a key frame every 16 frames, as prepare.py writes, or every 250, as most have.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for gop in (16, 250) if not options.video else (0,):
            path = options.video or write_texture(folder, gop)
            title = f"clips, key frame every {gop}" if gop else f"clips, {path}"
            count, rng = open_video(path, "pyav").count, np.random.default_rng(0)
            places = np.arange(8) * 8 + rng.integers(max(count - 63, 1), size=(8, 1))
            calls: Calls = {
                "ours": partial(read_clips, path, places % count),
                "every frame": partial(decode_clips, path, places % count),
            }
            assert torch.equal(*(call() for call in calls.values()))
            seconds = timing.by_turns(calls, options.repeats, "cpu")
            rows += [Row(title, name, times) for name, times in seconds.items()]
    return rows


def c2d(options: Options) -> list[Row]:
    """C2D, ResNet-50, forward and backward of a clip of 8 frames of 112 x 112.

    Ours runs its 1xkxk convolutions as 2-D ones on frames, theirs as 3-D ones.
    """
    torch.manual_seed(0)
    given = Network(variant="fast", dropout=0.0)
    nets = [build_network(replace(given, flat_2d=flat), Block(), 400) for flat in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    clip = torch.randn(options.batch, 3, 8, 112, 112, device=options.device)

    def run(net: VideoNetwork) -> Tensor:
        with options.autocast():
            logits = net(clip)
        logits.float().square().mean().backward()
        return logits.detach()

    calls: Calls = {
        name: partial(run, net.to(options.device).train())
        for name, net in zip(("2-D", "3-D"), nets, strict=True)
    }
    torch.testing.assert_close(*(call() for call in calls.values()), rtol=1e-2, atol=1e-2)
    seconds = timing.by_turns(calls, options.repeats, options.device)
    return [Row("C2D, 8 frames", name, times) for name, times in seconds.items()]


BENCHMARKS = {"block": block, "dot": dot, "concat": concat, "clips": clips, "c2d": c2d}


def read_clips(path: str, places: np.ndarray) -> Tensor:
    """Clips (N, L, 3, H, W) of the frames `places` (N, L), each from the file anew."""
    return torch.stack([open_video(path, "pyav").read(each) for each in places.tolist()])


def decode_clips(path: str, places: np.ndarray) -> Tensor:
    """The same by decoding all frames for each clip, and converting those of the clip."""
    import av

    clips = []
    for each in places.tolist():
        found = {}
        with av.open(path) as container:
            container.streams.video[0].thread_type = "NONE"
            for i, frame in enumerate(container.decode(video=0)):
                if i in each:
                    found[i] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
        clips.append(torch.stack([found[i] for i in each]))
    return torch.stack(clips)


def write_texture(folder: str, gop: int) -> str:
    """A video of 300 frames of 256 x 340: coloured noise that moves by a pixel a frame."""
    import av

    path, rng = f"{folder}/{gop}.mp4", np.random.default_rng(0)
    texture = rng.integers(0, 256, (32, 43, 3), np.uint8).repeat(8, 0).repeat(8, 1)[:, :340]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", 25, options={"crf": "18", "g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for i in range(300):
            image = np.roll(texture, i, 1) // 2 + rng.integers(0, 8, texture.shape, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def run_block(what: str, options: Options) -> list[Row]:
    """Rows of all `frames`: ours, then the matrix."""
    rows = []
    for frames in options.frames:
        shape = (options.batch, options.channels, frames, 28, 28)
        queries = frames * 28 * 28
        calls = block_calls(what, shape, options)
        exact = block_calls(what, shape, replace(options, amp=False))
        ours, theirs = (call() for call in exact.values())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        del exact, ours, theirs
        seconds = timing.by_turns(calls, options.repeats, options.device)
        del calls
        for name, times in seconds.items():
            memory = timing.in_new_process(block_memory, [name], what, shape, options)
            title = f"{what}, {queries:,} x {queries // 4:,}"
            rows.append(Row(title, name, times, memory[name]))
    return rows


def block_calls(what: str, shape: Sequence[int], options: Options) -> Calls:
    """Forward and backward of the block in its two ways, with equal weights."""
    torch.manual_seed(0)
    # He's draw, that the weights on the keys differ; and no identity, that the outputs tell.
    given = Block(mode=MODES[what], init="he", zero_init="none")
    ours, theirs = (
        NonLocalBlock(shape[1], replace(given, algorithm=each)).to(options.device)
        for each in ("auto", "naive")
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, device=options.device, requires_grad=True)
    change = torch.randn(*shape, device=options.device)

    def run(net: NonLocalBlock) -> list[Tensor]:
        with options.autocast():
            y = net(x)
        gradients = torch.autograd.grad(y, [x, *net.parameters()], change.to(y.dtype))
        return [y.detach(), gradients[0]]

    return {"ours": partial(run, ours), "the matrix": partial(run, theirs)}


def block_memory(
    names: Sequence[str], what: str, shape: Sequence[int], options: Options
) -> Mapping[str, int | None]:
    """Bytes that contestants of `block_calls` take beyond their inputs; for a new process."""
    torch.set_num_threads(options.threads)
    small = block_calls(what, (*shape[:2], 1, 8, 8), options)
    calls = block_calls(what, shape, options)
    memory = {}
    for name in names:
        small[name]()  # what libraries load at their first call
        memory[name] = timing.extra_memory(calls[name], options.device)
    return memory


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, and notes."""
    return BENCHMARKS[what](options), []


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
