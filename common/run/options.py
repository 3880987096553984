"""The options of a run as a part of its checkpoints: what shapes the result stays as it was.

    parts |= {"options": Options(cfg, MAY_CHANGE)}
    start = checkpoint.resume(folder, **parts)

MAY_CHANGE names the options, or whole groups of them, that leave the weights of a step as they are
(`save_every`, `data.workers`), say how the evaluation is done, or how long the training lasts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any


class Options:
    """The fields of a configuration by dotted name, without `output_dir`; `versus` is no option.

    processes: their number, where the loss or a norm is of one process's share of the batch, so
    that another number would give another result; 0 where it would not. The option `processes`
    does not tell, as 0 stands for every GPU of the machine.
    """

    def __init__(self, cfg: Any, may_change: Iterable[str], *, processes: int = 0) -> None:
        self.values = dict(_flat(cfg))
        if processes:
            self.values["number of processes"] = processes
        self.may_change = tuple(may_change)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: plain values."""
        return self.values

    def changes(self, stored: dict[str, Any]) -> tuple[dict[str, list], dict[str, list]]:
        """The options that are others than `stored`: [before, now] of what may not change, and may.

        Options that one of the two does not know, being of another version, are left out.
        """
        differing = {
            name: [stored[name], now]
            for name, now in self.values.items()
            if name in stored and stored[name] != now
        }
        free = {name: pair for name, pair in differing.items() if self._may_change(name)}
        fixed = {name: pair for name, pair in differing.items() if name not in free}
        return fixed, free

    def _may_change(self, name: str) -> bool:
        return any(name == free or name.startswith(f"{free}.") for free in self.may_change)


def _flat(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dataclasses by dotted name."""
    for field in fields(cfg):
        name, value = f"{prefix}{field.name}", getattr(cfg, field.name)
        if is_dataclass(value):
            yield from _flat(value, f"{name}.")
        elif name not in ("output_dir", "versus"):
            yield name, value
