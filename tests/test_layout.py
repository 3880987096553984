"""The room plan: which files a project has, who imports whom, what the READMEs say."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECTS = ["focal_loss", "large_minibatch", "panoptic", "program_execution"]
SCRIPTS = {
    *("analyse.py", "benchmark.py", "config.py", "convert.py", "data.py", "decode.py", "demo.py"),
    *("detection.py", "disjoint_ap.py", "doctor.py", "doctor_example.py", "evaluate.py"),
    *("check_data.py", "figures.py"),
    *(
        "finished.py",
        "folders.py",
        "instances.py",
        "merge_files.py",
        "parts.py",
        "photos.py",
        "predict.py",
    ),
    *("prepare.py", "scenes_data.py", "study.py", "study_pictures.py", "tables.py", "train.py"),
    *("batches.py", "explain.py", "initial.py", "stages.py", "symbolic.py", "transfer.py"),
}
ALSO = {  # what a project's library files need besides
    "panoptic": {"PIL", "pycocotools", "scipy"},  # its files are PNGs and run lengths; assignment
}
READERS = {"weights.py", "formats.py"}  # of others' weights, by common's reader of pickles
ROOMS = ["README.md", "__init__.py", "benchmark.py", "config.py", "data.py", "evaluate.py"]
ROOMS += ["model.py", "tables.py", "train.py", "conf/config.yaml"]
ROOMS += [f"conf/experiment/{name}.yaml" for name in ("demo", "paper", "smoke")]
HEADINGS = ["Use", "Results", "Paper → code", "Differences from the paper", "In your own code"]


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports absolutely."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_has_every_room(project):
    missing = [name for name in ROOMS if not (REPOSITORY / project / name).is_file()]
    assert not missing
    assert (REPOSITORY / "tests" / f"test_{project}_scripts.py").is_file()


@pytest.mark.parametrize("project", PROJECTS)
def test_no_project_imports_another(project):
    for path in (REPOSITORY / project).rglob("*.py"):
        others = imports(path) & (set(PROJECTS) - {project})
        assert not others, f"{path} imports {others}"


def test_common_imports_no_project():
    for path in (REPOSITORY / "common").rglob("*.py"):
        assert not imports(path) & set(PROJECTS), path


@pytest.mark.parametrize("project", PROJECTS)
def test_library_files_import_only_torch_and_siblings(project):
    allowed = {"torch", "torchvision", "numpy", "matplotlib"} | ALSO.get(project, set())
    for path in (REPOSITORY / project).glob("*.py"):
        if path.name in SCRIPTS:
            continue
        also = {"common"} if path.name in READERS else set()
        foreign = {n for n in imports(path) - allowed - also if not is_standard(n)}
        assert not foreign, f"{path.name} imports {foreign}, so it cannot be copied away"


def is_standard(name: str) -> bool:
    """Whether a module belongs to Python itself."""
    import sys

    return name in sys.stdlib_module_names


@pytest.mark.parametrize("project", PROJECTS)
def test_no_module_has_the_name_of_a_library(project):
    import sys

    names = {path.stem for path in (REPOSITORY / project).glob("*.py")} - {"__init__"}
    assert not names & (set(sys.stdlib_module_names) | {"datasets", "torch", "hydra"})


@pytest.mark.parametrize("folder", ["common", *PROJECTS])
def test_a_command_imports_first_what_answers_ctrl_c(folder):
    for path in (REPOSITORY / folder).rglob("*.py"):
        nodes = ast.parse(path.read_text()).body
        if any(ast.unparse(node).startswith("if __name__ ==") for node in nodes):
            first = next(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
            assert ast.unparse(first) == "import common.run.interrupt", path


def test_every_training_tells_resume_how_many_steps_it_has():
    for project in PROJECTS:
        for path in (REPOSITORY / project).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "checkpoint.resume":
                    assert "steps" in {word.arg for word in node.keywords}, path


@pytest.mark.parametrize("project", PROJECTS)
def test_the_readme_has_the_agreed_headings(project):
    text = (REPOSITORY / project / "README.md").read_text()
    headings = [line[3:].strip() for line in text.splitlines() if line.startswith("## ")]
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS


def test_every_package_is_installed():
    import tomllib

    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    listed = set(content["tool"]["setuptools"]["packages"])
    folders = [path.parent for path in REPOSITORY.glob("*/**/__init__.py")]
    packages = {
        ".".join(folder.relative_to(REPOSITORY).parts)
        for folder in folders
        if folder.relative_to(REPOSITORY).parts[0] not in ("tests", "build", ".venv")
    }
    assert packages == listed
