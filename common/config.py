"""Hydra's configuration as plain dataclasses, and its errors as one sentence.

    @dataclass
    class Loss:
        gamma: float = 2.0  # focusing strength, Sec. 3.2

        def __post_init__(self) -> None:
            require_range("loss.gamma", self.gamma, 0, 10)

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def main(cfg: DictConfig) -> None:
        config: Config = to_dataclass(cfg)
        dist.launch(train, config, config.processes)

    if __name__ == "__main__":
        run(main)

`python train.py los.gamma=1` then says `Unknown option 'los.gamma'. Did you mean 'loss.gamma'?` and
ends with exit code 2, before any data is read. `HYDRA_FULL_ERROR=1` shows the traceback instead.
A run that ends early prints the command that goes on with it. One that is refused leaves the record
of its folder, `.hydra/`, as it was. Commands without a run read their words by `read_options`.
"""

import difflib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from . import spawn
from .errors import UserError, going_on, sentence, under_way
from .files import relative

EXPECTED = {  # what OmegaConf says of a value of another type: what we say
    "converted to Float": "a number",
    "converted to Integer": "a whole number",
    "not a valid bool": "true or false",
    "not a ListConfig": "a list, such as [1,2],",
    "not a subclass of": "a group of options, not a value,",
}


def to_dataclass(cfg: DictConfig) -> Any:
    """The dataclass that `cfg` was composed from, filled in.

    Raises UserError: a value that must be given is missing, an option is unknown or out of range,
    or the script is of another checkout than `common`.
    """
    _same_checkout()
    if HydraConfig.initialized():
        folder = HydraConfig.get().runtime.output_dir
        under_way(folder, _command(folder))
    _no_additions(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        path = missing[0].rsplit(".", 1)[-1] in ("root", "path", "file", "folder", "init", "run")
        raise UserError(
            f"{missing[0]} is not set: give {missing[0]}={'/path' if path else 'VALUE'}."
        )
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    except ValueError as error:  # from the __post_init__ of a dataclass
        raise UserError(str(error)) from error


def read_options(
    kind: type, words: Sequence[str] | None = None, *, usage: str, least: int = 0
) -> Any:
    """The dataclass `kind` from words `name=value` and switches as --per-class.

    words: by default those of the command line. --help, or fewer words than `least`, prints `usage`
    and ends the command.
    """
    words = sys.argv[1:] if words is None else words
    if len(words) < least or {"-h", "--help"} & {*words[:1]}:
        print(usage)
        raise SystemExit
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and not word.startswith("--"):
            raise ValueError(f"{word!r} is not understood: write name=value.")
        name = name.removeprefix("--").replace("-", "_")
        pairs.append(f"{name}={value if equals else 'true'}")
    cfg = OmegaConf.structured(kind)
    cfg.merge_with_dotlist(pairs)
    return to_dataclass(cfg)


def run(main: Callable[[], Any]) -> None:
    """Call the function that `hydra.main` made; a user's mistake is one sentence, exit code 2."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    full = before == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    record: dict[Path, bytes] = {}
    try:
        _same_checkout()
        with spawn.ending_at_once():
            record = _record()
            main()
    except SystemExit as stop:
        if full and isinstance(stop, UserError) and stop.__cause__ is not None:
            raise stop.__cause__ from None
        _end(stop, record)
    except Exception as error:
        text = sentence(error) or _no_folder(error, main)
        if isinstance(error, HydraException | OmegaConfBaseException):
            text = explain(error, _groups(main))
        if full or text is None:
            error.add_note(going_on())
            raise
        _end(UserError(text), record)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _end(stop: SystemExit, record: dict[Path, bytes]) -> NoReturn:
    """End the command with what `stop` says, and how to go on with its run if it has begun."""
    status = stop.status if isinstance(stop, UserError) else stop.code
    lines = [str(stop)] if isinstance(stop, UserError) else []
    if status == 2:
        for path, content in record.items():
            if path.read_bytes() != content:  # a disk that cannot be written to has kept it
                path.write_bytes(content)
    elif status:
        lines.append(going_on())
    for line in filter(None, lines):
        print(line, file=sys.stderr, flush=True)
    raise SystemExit(status) from None


def _record() -> dict[Path, bytes]:
    """What Hydra and `versus` left in the folder of an earlier run that is named, path by path."""
    words = [word for word in sys.argv[1:] if word.startswith("hydra.run.dir=")]
    if not words:
        return {}
    folder = Path(str(OverridesParser.create().parse_override(words[-1]).value()))
    return {path: path.read_bytes() for path in folder.rglob(".hydra/*.yaml")}


def _command(folder: str) -> str:
    """The command line of this Hydra job, with its folder instead of one that the clock names."""
    overrides = HydraConfig.get().overrides
    words = [*overrides.task, *overrides.hydra]
    words = [word for word in words if not re.match(r"hydra\.(run|sweep|mode|launcher)\b", word)]
    place = relative(Path(folder))
    if re.search(r"[^\w./-]", place):  # Hydra's quoting
        place = "'" + place.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return shlex.join(["python", relative(Path(sys.argv[0])), *words, f"hydra.run.dir={place}"])


def _no_folder(error: Exception, main: Callable[[], Any]) -> str | None:
    """The sentence for an output folder in which Hydra could not write, before it called `main`."""
    cause = error.__cause__ or error
    called = getattr(getattr(main, "__wrapped__", None), "__code__", None)
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(cause, OSError) or called in (None, *codes):
        return None
    place = cause.filename or "the output folder"  # a full disk shows when its file is written
    return (
        f"{place} cannot be written to ({cause.strerror}): give an output folder of your own by "
        "hydra.run.dir=."
    )


def explain(error: BaseException, groups: Iterable[str] = ()) -> str:
    """One sentence for an error of Hydra or OmegaConf, with the nearest valid name.

    `groups`: names of configuration groups, which are valid options besides the keys.
    """
    if isinstance(error, MissingConfigException):
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if group and error.options:
            return f"Unknown choice '{group}={choice}'.{_suggest(choice, error.options, group)}"
    text = str(error)
    cause = error
    if not isinstance(error, OmegaConfBaseException):
        cause = error.__cause__ or error.__context__ or error
    source = re.match(r"In '([^']+)'", text)
    where = f" in conf/{source.group(1)}.yaml" if source else ""
    key = str(getattr(cause, "full_key", None) or "")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        given = re.match(r"Could not override '([^']+)'", text)
        if cause.parent_node is not None and OmegaConf.get_type(cause.parent_node) is dict:
            group = key.rpartition(".")[0]
            return f"{group} has no '{key[len(group) + 1 :]}': add it by a + before {group}."
        name = key if not given or key.startswith(f"{given.group(1)}.") else given.group(1)
        names = _names(cause.parent_node._get_root()) if cause.parent_node is not None else ()
        return f"Unknown option '{name}'{where}.{_suggest(name, [*names, *groups])}"
    first = str(cause).splitlines()[0].rstrip(".") if str(cause) else type(cause).__name__
    if isinstance(cause, ValidationError) and key:
        expected = [ours for theirs, ours in EXPECTED.items() if theirs in first]
        reason = f"{expected[0]} is expected" if expected else first
        return f"{key}={cause.value}{where}: {reason}."
    if isinstance(cause, OmegaConfBaseException) and key:
        return f"{key}{where}: {first}."
    lines = [line.strip() for line in text.splitlines() if "hydra.cc" not in line and line.strip()]
    return " ".join(lines) or type(error).__name__


def require_range(
    name: str, value: float, low: float | None = None, high: float | None = None
) -> None:
    """Raise ValueError unless `low <= value <= high`; None leaves a side open."""
    if (low is None or value >= low) and (high is None or value <= high):
        return
    limits = f"within {low} to {high}"
    if low is None or high is None:
        limits = f"at most {high}" if low is None else f"at least {low}"
    raise ValueError(f"{name}={value} is out of range: it must be {limits}.")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError, with the nearest name, unless `value` is one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}={value} is unknown.{_suggest(value, choices, name)}")


def _suggest(name: str, valid: Iterable[str], option: str = "") -> str:
    """` Did you mean ...?` with the name in `valid` nearest to `name`, else a short list."""
    valid = sorted(set(valid))
    prefix = f"{option}=" if option else ""
    same = [v for v in valid if v.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = (
        difflib.get_close_matches(name, same, n=1, cutoff=0.5)
        or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
        or same[:1]  # a right name in the wrong place
    )
    if near:
        return f" Did you mean '{prefix}{near[0]}'?"
    short = [v for v in valid if "." not in v and v != "hydra"][:20]
    return f" There are: {', '.join(short)}." if short else ""


def _names(node: Any, prefix: str = "") -> Iterable[str]:
    """Dotted names of all options below `node`, inner ones included."""
    for key in map(str, node) if isinstance(node, DictConfig) and not node._is_missing() else ():
        yield f"{prefix}{key}"
        yield from _names(node._get_node(key), f"{prefix}{key}.")


def _groups(main: Callable[[], Any]) -> list[str]:
    """Configuration groups beside the script that `main` is defined in."""
    code = getattr(getattr(main, "__wrapped__", main), "__code__", None)
    conf = Path(code.co_filename).parent / "conf" if code else Path("conf")
    return [str(p.relative_to(conf)) for p in conf.rglob("*") if p.is_dir()]


def _no_additions(node: Any, prefix: str = "") -> None:
    """Refuse what `+name=value` added: no code would read it."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    kind = OmegaConf.get_type(node)
    valid = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    for key in map(str, node):
        if valid is not None and key not in valid:
            names = [f"{prefix}{name}" for name in valid]
            raise UserError(f"Unknown option '{prefix}{key}'.{_suggest(prefix + key, names)}")
        _no_additions(node._get_node(key), f"{prefix}{key}.")


def _same_checkout() -> None:
    """Stop where the running script belongs to another checkout than this file."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None:
        return
    mine = Path(__file__).resolve().parent
    beside = Path(script).resolve().parent.parent / mine.name
    if (beside / Path(__file__).name).is_file() and beside != mine:
        raise UserError(
            f"{script} is of the checkout {beside.parent}, but 'common' was imported from "
            f"{mine.parent}: run 'pip install -e .' in {beside.parent}."
        )
    folder = Path(script).resolve().parent
    found = find_spec(folder.name) if (folder / "__init__.py").is_file() else None
    imported = Path(found.origin).resolve().parent if found and found.origin else folder
    if imported != folder and imported.parent == mine.parent:
        raise UserError(
            f"{script} would run the code of {imported} instead of its own: put a copy of common/ "
            f"beside its folder and run 'python -m {folder.name}.{Path(script).stem}' from there."
        )
