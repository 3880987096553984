"""The plan of rooms: which files and wings a project has, and who imports whom.

`PLAN` names all ten projects, of which the folders that are there are checked. A failing test says
which rule is broken, and by which file.
"""

import ast
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LIMIT = 15  # Python files at a level


@dataclass(frozen=True)
class Project:
    """What a project has besides what all have; names of files without their ending."""

    idea: str  # the paper in one file
    library: tuple[str, ...] = ()  # further files at the top that are copied away
    wings: tuple[str, ...] = ()  # its own, library wings unless they are in `WITH_COMMON`
    also: tuple[str, ...] = ()  # packages that its library needs besides torch


PLAN = {
    "focal_loss": Project("loss", library=("criterion", "detect"), wings=("targets",)),
    "large_minibatch": Project(
        "recipe",
        library=("sgd", "allreduce"),
        wings=("norm", "checks", "analysis", "mask_rcnn"),
    ),
    "panoptic": Project(
        "quality",
        library=("merge",),
        wings=("metric", "files", "merging", "annotators"),
        also=("PIL", "pycocotools", "scipy"),  # PNGs, run lengths, assignment
    ),
    "program_execution": Project("engine", wings=("execution", "decoding")),
    "maskx_rcnn": Project("transfer"),
    "data_distillation": Project("distill", wings=("labels",)),
    "nonlocal": Project("block", wings=("clips",), also=("PIL", "av", "torchcodec")),
    "hashtag_pretrain": Project(
        "hashtags", wings=("words", "shards", "duplicates", "targets"), also=("PIL", "scipy")
    ),
    "lowshot_hallucination": Project(
        "hallucinate",
        wings=("features", "backbone", "baselines", "protocol"),
        also=("efficientnet_lite_pytorch",),
    ),
    "learning_by_asking": Project("ask", wings=("oracle", "asking", "language")),
}
PROJECTS = [name for name in PLAN if (REPOSITORY / name).is_dir()]
FOLDERS = ["common", *PROJECTS]
FILES = ["README.md", "__init__.py", "config.py", "model.py", "data.py", "evaluate.py", "train.py"]
FILES += ["tables.py", "benchmark.py", "conf/config.yaml"]
FILES += [f"conf/experiment/{name}.yaml" for name in ("demo", "paper", "smoke")]
WINGS = ("net", "inputs", "weights", "figures")  # of any project
HEADINGS = ["Use", "Results", "Paper → code", "Differences from the paper", "In your own code"]

# Wings and files that are no library: what they do, they do with `common`.
WITH_COMMON = {
    "inputs": "what data.py is put together from",
    "weights": "reads files of others",
    "figures": "draws",
    "labels": "files of automatic labels",
    "hashtag_pretrain/targets": "data sets, training and scores of a transfer",
    "learning_by_asking/asking": "features, questions, processes",
    "learning_by_asking/language": "CLEVR's programs and words",
    "learning_by_asking/oracle": "scenes, the log of a run",
    "lowshot_hallucination/features": "files of features, images",
    "lowshot_hallucination/backbone": "training a trunk",
    "lowshot_hallucination/baselines": "progress, checks of options",
    "lowshot_hallucination/protocol": "draws of the test, files of a predictor",
    "large_minibatch/analysis": "reads the folders of runs",
    "large_minibatch/mask_rcnn": "COCO's instances",
    "panoptic/files/detection.py": "run lengths",
    "panoptic/files/predictions.py": "files that several processes write",
    "panoptic/merging/results.py": "run lengths",
    "panoptic/metric/parts.py": "AP as COCO computes it",
    "program_execution/execution/symbolic.py": "CLEVR's own functions, to compare with",
}
# Loaded by its path, as a user's own file is.
EXAMPLE = "large_minibatch/checks/example.py"
# Pickles are read by common/weights; these read what their own processes wrote.
OWN_PICKLES = {
    "common/spawn.py": "what its workers send",
    "common/coco/dataset.py": "what it packed in memory",
    "large_minibatch/checks/workers.py": "what its workers wrote",
}


@dataclass(frozen=True)
class Module:
    """A Python file of the repository."""

    path: str  # from the repository's root
    name: str  # dotted
    tree: ast.Module

    @property
    def folder(self) -> str:
        """`common` or the project."""
        return self.path.split("/")[0]

    @property
    def wing(self) -> str:
        """The sub-package that it stands in; empty at the top."""
        parts = self.path.split("/")
        return parts[1] if len(parts) > 2 else ""

    @property
    def is_command(self) -> bool:
        return any(ast.unparse(node).startswith("if __name__ ==") for node in self.tree.body)

    @property
    def is_library(self) -> bool:
        """Whether it is to work where torch is, without the rest of the repository."""
        places = {self.wing, f"{self.folder}/{self.wing}", self.path}
        if self.folder == "common" or places & set(WITH_COMMON):
            return False
        stem = self.path.split("/")[-1].removesuffix(".py")
        project = PLAN[self.folder]
        return bool(self.wing) or stem in ("__init__", "model", project.idea, *project.library)

    def imports(self) -> list[tuple[ast.stmt, str]]:
        """Each import, wherever it stands, and the dotted module or package that it names."""
        package = self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]
        found: list[tuple[ast.stmt, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")
                base = parts[: len(parts) + 1 - node.level] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    full = f"{source}.{alias.name}"
                    found.append((node, full if full in names() else source))
        return list(dict.fromkeys(found))


def dotted(path: str) -> str:
    """`nonlocal` is a keyword, so that folder's import name has an underscore."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(["nonlocal_" if parts[0] == "nonlocal" else parts[0], *parts[1:]])


def python_files(folder: str) -> list[str]:
    """The Python files of a folder at any depth, without what runs leave there."""
    paths = (path.relative_to(REPOSITORY) for path in (REPOSITORY / folder).rglob("*.py"))
    return sorted(path.as_posix() for path in paths if "outputs" not in path.parts)


@cache
def names() -> frozenset[str]:
    return frozenset(dotted(path) for folder in FOLDERS for path in python_files(folder))


@cache
def modules() -> list[Module]:
    """All modules of common and the projects."""
    paths = [path for folder in FOLDERS for path in python_files(folder)]
    return [Module(p, dotted(p), ast.parse((REPOSITORY / p).read_text())) for p in paths]


def require_none(rule: str, faults: list[str]) -> None:
    assert not faults, "\n  ".join([f"{rule}:", *faults])


# Folders


def test_every_project_is_in_the_plan():
    found = {path.parent.name for path in REPOSITORY.glob("*/train.py")}
    require_none("a project stands in PLAN", sorted(found - set(PLAN)))


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_has_the_agreed_files(project):
    wanted = [*FILES, f"{PLAN[project].idea}.py", *(f"{n}.py" for n in PLAN[project].library)]
    wanted = [f"{project}/{name}" for name in wanted] + [f"tests/{project}/test_scripts.py"]
    missing = [name for name in wanted if not (REPOSITORY / name).is_file()]
    require_none("every project has these files", missing)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_level_has_at_most_15_files(folder):
    levels: dict[str, int] = {}
    for path in python_files(folder):
        level = path.rpartition("/")[0]
        levels[level] = levels.get(level, 0) + 1
    full = [f"{level} has {count}" for level, count in levels.items() if count > LIMIT]
    require_none(f"at most {LIMIT} Python files at a level", full)


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_has_only_the_agreed_wings(project):
    found = {m.wing for m in modules() if m.folder == project and m.wing}
    others = sorted(found - {*WINGS, *PLAN[project].wings})
    require_none(f"wings are named in WINGS or in PLAN[{project!r}]", others)


def test_every_wing_says_what_is_in_it_and_nothing_else():
    faults = []
    packages = {m.path.rpartition("/")[0] for m in modules()}
    for package in sorted(packages):
        init = next((m for m in modules() if m.path == f"{package}/__init__.py"), None)
        if init is None or not ast.get_docstring(init.tree):
            faults.append(f"{package}/__init__.py")
        elif init.wing and init.folder != "common" and len(init.tree.body) > 1:
            faults.append(f"{package}/__init__.py holds more")
    require_none("a package has an __init__.py of a docstring, a wing of that alone", faults)


def test_no_module_has_the_name_of_a_library():
    taken = set(sys.stdlib_module_names) | {"datasets", "torch", "hydra"}
    top = [m for m in modules() if m.folder != "common" and not m.wing]
    faults = [m.path for m in top if m.name.rpartition(".")[2] in taken]
    require_none("a script's folder is first on sys.path, so no file hides a library", faults)


# Imports


def test_common_imports_no_project_and_no_project_another():
    faults = []
    for module in modules():
        for node, name in module.imports():
            top = name.split(".")[0].rstrip("_")
            if top in PLAN and top != module.folder:
                faults.append(f"{module.path}:{node.lineno} imports {name}")
    require_none("common imports no project, and no project another", faults)


def test_no_wing_imports_a_command():
    commands = {module.name for module in modules() if module.is_command}
    faults = [
        f"{module.path}:{node.lineno} imports {name}"
        for module in modules()
        if module.wing
        for node, name in module.imports()
        if name in commands
    ]
    require_none("no wing imports a command", faults)


def test_imports_inside_a_wing_are_relative():
    faults = []
    for module in modules():
        for node, name in module.imports() if module.path != EXAMPLE else ():
            own = module.wing and name.split(".")[0] == module.name.split(".")[0] != "common"
            if own and not (isinstance(node, ast.ImportFrom) and node.level):
                faults.append(f"{module.path}:{node.lineno} imports {name}")
    require_none("a wing imports its own project by relative names, to be copied", faults)


def test_no_circle_among_modules():
    graph = {m.name: sorted({n for _, n in m.imports() if n in names()}) for m in modules()}
    done: set[str] = set()

    def circle(name: str, above: tuple[str, ...]) -> tuple[str, ...]:
        """The first circle below a module, as a path that ends where it begins."""
        if name in above:
            return (*above[above.index(name) :], name)
        if name not in done:
            for other in graph[name]:
                if found := circle(other, (*above, name)):
                    return found
            done.add(name)
        return ()

    found = next((path for name in graph if (path := circle(name, ()))), ())
    require_none("modules import each other in no circle", [" -> ".join(found)] if found else [])


@pytest.mark.parametrize("project", PROJECTS)
def test_the_library_imports_only_torch_and_itself(project):
    allowed = {"torch", "torchvision", "numpy", "matplotlib", *PLAN[project].also}
    allowed |= set(sys.stdlib_module_names)
    library = {m.name for m in modules() if m.is_library}
    faults = [
        f"{module.path}:{node.lineno} imports {name}"
        for module in modules()
        if module.folder == project and module.is_library
        for node, name in module.imports()
        if name not in library and name.split(".")[0] not in allowed
    ]
    require_none("what is copied away imports torch and what is copied with it", faults)


def test_pickles_of_others_have_one_reader():
    faults = []
    for module in modules():
        if module.path.startswith("common/weights/"):
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            own = module.path in OWN_PICKLES
            unsafe = called in ("pickle.load", "pickle.loads", "pickle.Unpickler") and not own
            unsafe |= called == "torch.load" and options.get("weights_only") != "True"
            unsafe |= options.get("allow_pickle") == "True"
            if unsafe:
                faults.append(f"{module.path}:{node.lineno} calls {called}")
        for node, name in module.imports():
            words = {a.name for a in node.names} if isinstance(node, ast.ImportFrom) else set()
            readers = name == "pickle" and words & {"load", "loads", "Unpickler"}
            if name == "pickletools" or readers:
                faults.append(f"{module.path}:{node.lineno} imports {name}")
    require_none("files of others are read by common/weights alone", faults)


def test_a_command_imports_first_what_answers_ctrl_c():
    faults = []
    for module in modules():
        if module.is_command:
            nodes = (n for n in module.tree.body if isinstance(n, ast.Import | ast.ImportFrom))
            if ast.unparse(next(nodes)) != "import common.run.interrupt":
                faults.append(module.path)
    require_none("a command's first import is common.run.interrupt", faults)


def test_every_training_tells_resume_how_many_steps_it_has():
    faults = [
        f"{module.path}:{node.lineno}"
        for module in modules()
        if module.folder != "common"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "checkpoint.resume"
        if "steps" not in {word.arg for word in node.keywords}
    ]
    require_none("checkpoint.resume is told `steps`", faults)


# READMEs and packages


@pytest.mark.parametrize("project", PROJECTS)
def test_the_readme_has_the_agreed_headings(project):
    text = (REPOSITORY / project / "README.md").read_text()
    headings = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS, project


def test_a_wheel_of_a_clean_tree_has_every_wing_and_every_conf(tmp_path):
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    tree, wheels = tmp_path / "tree", tmp_path / "wheels"
    paths = [path for path in done.stdout.splitlines() if (REPOSITORY / path).is_file()]
    for path in paths:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        if "/assets/" not in path and not path.startswith("tests/"):
            shutil.copy(REPOSITORY / path, tree / path)
    wheels.mkdir()
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(wheels)], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.iterdir()
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = [p for p in paths if p.split("/")[0] in FOLDERS and p.endswith((".py", ".yaml"))]
    missing = [p for p in wanted if p.replace("nonlocal/", "nonlocal_/", 1) not in packed]
    require_none("pyproject.toml packs every wing and every conf/", missing)
