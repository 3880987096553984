"""Frames of video files by their number: exact, by seeking, decoding no more than is needed.

A reader has `count` frames of size H x W, `fps` of them a second (0: unknown), and says in `damage`
what is wrong with the file; `read(indices)` gives uint8 (T, 3, H, W), for indices in any order and
as often as wanted. PyAV and torchcodec are imported when a file is opened.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_PIXELS = 2**26  # of a frame; a larger one is refused, it would take a gigabyte in decoding

# A packet of these codecs is a frame, and these containers store the time of each. In others, as
# AVI, times are guesses, and frames are counted by decoding the file once.
_ONE_TO_ONE = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "ffv1", "rawvideo")
_WITH_TIMES = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class UnreadableVideo(ValueError):
    """A video that gives no frames, or not all that it should; the message names the file."""


@dataclass(frozen=True)
class Frames:
    """What is known of a file's frames before one is read.

    times: their times (N,), ascending, in the stream's unit; None if they cannot be sought by time.
    keys: times of the frames at which decoding can start (K,), and what to seek for (K,).
    """

    count: int
    fps: float
    times: np.ndarray | None
    keys: np.ndarray
    seek: np.ndarray
    damage: str = ""


class PyAVReader:
    """Frames of a video file by PyAV.

    damaged: "raise" stops at a file that breaks off or has frames that cannot be decoded; for
    "play" those that can be are the video.
    """

    def __init__(self, path: str, damaged: str = "raise") -> None:
        self.path, self.damaged = path, damaged
        status = os.stat(path)
        self._take(list_frames(path, status.st_size, status.st_mtime_ns))

    def _take(self, frames: Frames) -> None:
        """Go by these frames from now on."""
        require_playable(self.path, frames.count, frames.damage, self.damaged)
        self.frames, self.damage = frames, frames.damage
        self.count, self.fps = frames.count, frames.fps

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` (T), each 0 to count - 1, as uint8 (T, 3, H, W)."""
        wanted = check_indices(indices, self.count, self.path)
        found = {} if self.frames.times is None else self._by_time(wanted)
        if len(found) < len(wanted):
            if self.frames.times is not None:  # some packets give no frame: count those that do
                self._take(_decode_once(self.path, self.count))
            found = self._by_order({min(i, self.count - 1) for i in wanted})
        return torch.stack([found[min(int(i), self.count - 1)] for i in indices])

    def _by_time(self, wanted: list[int]) -> dict[int, Tensor]:
        """Frames by number; the decoder starts at the last key frame before each gap."""
        times, keys = self.frames.times, self.frames.keys
        assert times is not None
        found: dict[int, Tensor] = {}
        with _open(self.path) as container:
            stream = _video(container, self.path)
            frames, at, shape = _decode(container, stream), -np.inf, None
            for i in wanted:
                k = int(np.searchsorted(keys, times[i], "right")) - 1
                if k >= 0 and keys[k] > at and (k > 0 or at > -np.inf):
                    container.seek(int(self.frames.seek[k]), stream=stream)
                    frames = _decode(container, stream)
                frame = None
                while at < times[i] and (frame := next(frames, None)) is not None:
                    at = frame.pts if frame.pts is not None else at
                if frame is None or at != times[i]:
                    return {}
                found[i] = _pixels(frame, shape)
                shape = shape or found[i].shape
        return found

    def _by_order(self, wanted: set[int]) -> dict[int, Tensor]:
        """Frames by number, counted from the first."""
        found: dict[int, Tensor] = {}
        shape = None
        with _open(self.path) as container:
            for i, frame in enumerate(_decode(container, _video(container, self.path))):
                if i in wanted:
                    found[i] = _pixels(frame, shape)
                    shape = shape or found[i].shape
                if len(found) == len(wanted):
                    return found
        raise UnreadableVideo(f"{self.path} changed while it was read: start again")

    def all_frames(self) -> Iterator[Tensor]:
        """Each frame (3, H, W) that can be decoded, in order."""
        shape = None
        with _open(self.path) as container:
            for frame in _decode(container, _video(container, self.path)):
                pixels = _pixels(frame, shape)
                shape = shape or pixels.shape
                yield pixels


class TorchCodecReader:
    """Frames of a video file by torchcodec, which needs FFmpeg's libraries on the system."""

    def __init__(self, path: str, damaged: str = "raise") -> None:
        from torchcodec.decoders import VideoDecoder

        self.path, self.damage = path, ""
        try:
            # Exact: it scans the file's packets, so that indices are those of the frames.
            self.decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
            size = (self.decoder.metadata.height or 0) * (self.decoder.metadata.width or 0)
            self.count = len(self.decoder)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UnreadableVideo(f"{path} cannot be read as a video ({_first(error)})") from error
        require_small(path, size)
        require_playable(path, self.count, "", damaged)
        self.fps = float(self.decoder.metadata.average_fps or 0)

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames `indices` (T), each 0 to count - 1, as uint8 (T, 3, H, W)."""
        wanted = check_indices(indices, self.count, self.path)
        try:  # ascending and each once: going back has given stale frames (torchcodec#1339)
            frames = self.decoder.get_frames_at(wanted).data
        except (RuntimeError, IndexError) as error:
            raise UnreadableVideo(
                f"{self.path} is damaged ({_first(error)}): get it again, or read it by "
                "reader=pyav, which can play it as far as it goes"
            ) from error
        return frames[np.searchsorted(wanted, indices)]


def require_playable(path: str, count: int, damage: str, damaged: str) -> None:
    """Raise UnreadableVideo for no frames, or damage unless it is to be played."""
    if not count:
        raise UnreadableVideo(f"{path} has no frame that can be decoded: get the file again")
    if damage and damaged != "play":
        raise UnreadableVideo(
            f"{path} is damaged: {damage}. Get it again, or play such files as far as they go "
            "(data.damaged=play; of prepare.py damaged=play)"
        )


def require_small(path: str, pixels: int) -> None:
    """Raise UnreadableVideo for frames of more than `MAX_PIXELS`."""
    if pixels > MAX_PIXELS:
        raise UnreadableVideo(f"{path} has frames of {pixels} pixels, more than {MAX_PIXELS}")


def check_indices(indices: Sequence[int], count: int, path: str) -> list[int]:
    """The indices in order, each once; IndexError for one beyond the video."""
    wanted = sorted({int(i) for i in indices})
    if not wanted or wanted[0] < 0 or wanted[-1] >= count:
        raise IndexError(f"frames {wanted[:1]} to {wanted[-1:]} of the {count} of {path}")
    return wanted


@lru_cache(maxsize=256)
def list_frames(path: str, size: int, changed: int) -> Frames:
    """The frames of a file: from its packets, without decoding, where these can be trusted.

    size, changed: bytes of the file and when it was written, to tell it from one of the same name.
    """
    with _open(path) as container:
        stream = _video(container, path)
        one_to_one = stream.codec_context.name in _ONE_TO_ONE
        if not one_to_one or container.format.name not in _WITH_TIMES:
            return _decode_once(path)
        try:
            packets = [packet for packet in container.demux(stream) if packet.size]
        except _errors():
            return _decode_once(path)
        shown = [packet for packet in packets if not packet.is_discard]
        times = [packet.pts for packet in shown]
        known = None not in times and len(set(times)) == len(times)
        if not known or any(packet.is_corrupt for packet in packets):
            return _decode_once(path)
        if stream.frames not in (0, len(packets)) or _is_cut_off(path, stream):
            return _decode_once(path)
        keys = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in shown if p.is_keyframe)
        columns = np.array(keys, np.int64).reshape(-1, 2).T
        return Frames(len(times), _rate(stream), np.array(sorted(times)), columns[0], columns[1])


def _decode_once(path: str, expected: int = 0) -> Frames:
    """The frames of a file by decoding all of it; fewer than `expected` are damage."""
    errors: list[str] = []
    with _open(path) as container:
        stream = _video(container, path)
        if _is_cut_off(path, stream):
            errors.append("the file is cut off")
        decoded = [(f.pts, f.key_frame) for f in _decode(container, stream, errors)]
        fps, seekable = _rate(stream), container.format.name in _WITH_TIMES and not errors
    if len(decoded) < expected and not errors:
        errors.append(f"{expected} are announced")
    damage = f"{len(decoded)} frames can be decoded ({errors[0]})" if errors else ""
    times, none = [pts for pts, _ in decoded], np.zeros(0, np.int64)
    if not seekable or None in times or any(a >= b for a, b in pairwise(times)):
        return Frames(len(decoded), fps, None, none, none, damage)
    keys = np.array([pts for pts, key in decoded if key], np.int64)
    return Frames(len(decoded), fps, np.array(times, np.int64), keys, keys, damage)


def _decode(container: Any, stream: Any, errors: list[str] | None = None) -> Iterator[Any]:
    """The frames that can be decoded from here on, in the order in which they are shown.

    errors: gets a sentence for each packet or frame that cannot.
    """
    errors = [] if errors is None else errors
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except _errors() as error:
            errors.append(_first(error))
            return
        if packet is None:
            return
        if packet.is_corrupt:
            errors.append("a packet breaks off")
            continue
        try:
            frames = packet.decode()
        except _errors() as error:
            errors.append(_first(error))
            continue
        for frame in frames:
            if frame.is_corrupt:
                errors.append("a frame is broken")
            else:
                yield frame


def _pixels(frame: Any, shape: Sequence[int] | None) -> Tensor:
    """A frame as uint8 (3, H, W) RGB, upright; `shape`: of the first one, if there was one."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as a phone has noted
    height, width = frame.height, frame.width
    if shape is not None:
        height, width = shape[1 + turns % 2], shape[2 - turns % 2]
    array = frame.to_ndarray(format="rgb24", height=height, width=width)
    image = torch.from_numpy(array).permute(2, 0, 1)
    return torch.rot90(image, turns, (1, 2)).contiguous()


def _open(path: str) -> Any:
    """The file as a container of PyAV, to be closed by `with`."""
    import av

    try:
        return av.open(path)
    except _errors() as error:
        raise UnreadableVideo(f"{path} cannot be read as a video ({_first(error)})") from error


def _video(container: Any, path: str) -> Any:
    """The stream of images in a container."""
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise UnreadableVideo(f"{path} has no images, only {', '.join(kinds)}")
    stream = container.streams.video[0]
    require_small(path, (stream.width or 0) * (stream.height or 0))
    stream.thread_type = "NONE"  # loaders have a process for each core
    return stream


def _errors() -> tuple[type[Exception], ...]:
    """What PyAV raises for damaged files."""
    import av

    return av.FFmpegError, EOFError, UnicodeDecodeError


def _is_cut_off(path: str, stream: Any) -> bool:
    """Whether the index or the header of a file tells of bytes beyond its end."""
    size = os.path.getsize(path)
    if any(entry.pos + entry.size > size for entry in stream.index_entries):
        return True
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"RIFF"):  # AVI
        return 8 + int.from_bytes(head[4:8], "little") > size
    place = head.find(b"\x18\x53\x80\x67") + 4  # Matroska: its segment, a number of bytes
    if not head.startswith(b"\x1a\x45\xdf\xa3") or place < 4 or place >= len(head):
        return False
    width = 9 - head[place].bit_length()  # of that number, whose first one bit tells it
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[place : place + width], "big") & unknown
    return length != unknown and place + width + length > size


def _rate(stream: Any) -> float:
    """Frames a second on average; 0 where the file does not say."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def _first(error: Exception) -> str:
    """What an error says, in short."""
    return (str(error).splitlines() or [type(error).__name__])[0]
