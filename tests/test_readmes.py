"""What a README says can be typed: its Python runs, its commands and their options exist."""

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECTS = sorted(path.parent.name for path in REPOSITORY.glob("*/train.py"))
READMES = ["README.md", *(f"{project}/README.md" for project in PROJECTS)]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(python [^`]+)`")
OF_TABLES = {"scale", "seeds", "jobs", "run", "rows"}  # options of every tables.py


@pytest.mark.parametrize("project", PROJECTS)
def test_the_python_of_a_readme_runs_in_an_empty_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (REPOSITORY / project / "README.md").read_text()
    blocks = [block for block in BLOCK.finditer(text) if block[1] == "python"]
    assert blocks
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        above = text.count("\n", 0, block.start(2))  # so that a traceback has the README's lines
        exec(compile("\n" * above + block[2], f"{project}/README.md", "exec"), names)


@pytest.mark.parametrize("readme", READMES)
def test_the_commands_of_a_readme_exist_with_their_options(readme, monkeypatch, capsys):
    commands = list(commands_of(readme))
    assert commands
    faults = []
    for folder, words in commands:
        fault = fault_of(folder, words, monkeypatch, capsys)
        if fault:
            faults.append(f"{readme}: python {' '.join(words)}: {fault}")
    assert not faults, "\n".join(faults)


def commands_of(readme: str) -> Iterator[tuple[str, list[str]]]:
    """The folder and the words behind `python` of each command, in blocks and within sentences."""
    text = (REPOSITORY / readme).read_text()
    start = Path(readme).parent.as_posix()
    for block in BLOCK.finditer(text):
        folder = start
        for line in block[2].replace("\\\n", " ").splitlines() if block[1] != "python" else ():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["cd"]:
                    folder = words[1]
                elif words[:1] == ["python"]:
                    yield folder, words[1:]
    for sentence in INLINE.finditer(BLOCK.sub("", text)):
        yield start, shlex.split(sentence[1])[1:]


def fault_of(folder: str, words: list[str], monkeypatch: Any, capsys: Any) -> str:
    """What is wrong with a command, empty where it could be typed."""
    if words[0] == "-m":
        place, name, words = f"{words[1].replace('.', '/')}.py", words[1], words[2:]
    else:
        place, words = f"{folder}/{words[0]}", words[1:]
        name = place.removesuffix(".py").replace("/", ".")
    path = REPOSITORY / place
    if not path.is_file():
        return f"there is no {place}"
    if not words:
        return ""
    source = path.read_text()
    module = importlib.import_module(name)
    options = [word for word in words if re.match(r"[\w.]+=", word)]
    if path.name == "tables.py":
        known = {table.name for table in module.TABLES}
        unknown = [word for word in words if "=" not in word and word not in known]
        if unknown:
            return f"there is no table {', '.join(unknown)}"
        rest = [word for word in options if word.partition("=")[0] not in OF_TABLES]
        return fault_of(folder, ["train.py", *rest], monkeypatch, capsys)
    if "@hydra.main(" in source:
        return fault_of_config(path, module, options)
    if "argparse" in source and words[0] not in options:
        return fault_of_arguments(module, words, monkeypatch, capsys)
    missing = [key for key in keys(options) if not re.search(rf"\b{key}\b", source)]
    return f"{place} knows no {', '.join(missing)}" if missing else ""


def keys(options: list[str]) -> list[str]:
    return [option.partition("=")[0] for option in options]


def fault_of_config(path: Path, module: ModuleType, options: list[str]) -> str:
    """Compose the configuration of a script of Hydra, its placeholders filled in."""
    (wanted,) = re.findall(r'@hydra\.main\(.*config_name="(\w+)"', path.read_text())
    for file in {path, path.with_name("config.py")}:  # other tests keep theirs under these names
        for name, schema in re.findall(r'\.store\("(\w+)", (\w+)\)', file.read_text()):
            owner = importlib.import_module(f"{path.parent.name}.{file.stem}")
            ConfigStore.instance().store(name, getattr(owner, schema))
    words = [re.sub(r"=[A-Z]$", "=1", option) for option in options]  # seed=N
    try:
        with initialize_config_dir(str(path.parent / "conf"), version_base="1.3"):
            compose(wanted, words)
    except Exception as error:  # Hydra's and OmegaConf's are many
        return str(error).split("\n")[0]
    return ""


def fault_of_arguments(module: ModuleType, words: list[str], monkeypatch: Any, capsys: Any) -> str:
    """Ask a script of argparse for help behind the words: it has to get there and know them."""
    monkeypatch.setattr(sys, "argv", ["script", *words, "--help"])
    capsys.readouterr()
    try:
        module.main()
    except SystemExit as end:
        printed = capsys.readouterr()
        if end.code:
            return printed.err.strip().split("\n")[-1]
        missing = [word for word in words if word.startswith("--") and word not in printed.out]
        return f"its help has no {', '.join(missing)}" if missing else ""
    return "it ran"
