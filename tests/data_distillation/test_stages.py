"""Teachers and labels come first, each once: trained, shared, reused, waited for."""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from common import files
from common.config import to_dataclass
from common.errors import UserError
from common.run import checkpoint
from common.run.options import Options
from data_distillation import data, stages, train
from data_distillation.config import Config, may_change
from data_distillation.distill import Merge, Transforms
from data_distillation.evaluate import columns, evaluate
from data_distillation.inputs.builtin import write_builtin
from data_distillation.labels.counts import count_labelled, keep_sound, read_content
from data_distillation.labels.records import annotate
from data_distillation.labels.shards import read_info
from data_distillation.model import build_detector
from data_distillation.stages import find_teacher, prepare, with_files
from data_distillation.weights.teacher import digest_weights, load_teacher
from tests.data_distillation.small import BUILTIN, lines, run, saved

CONF = Path(__file__).resolve().parents[2] / "data_distillation" / "conf"
SMALL = ["test.tta=false", "test.images=0", "steps=2", "transforms.scales=[48]"]


@pytest.fixture(scope="module", autouse=True)
def _not_evaluated():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train, "evaluate", lambda model, cfg, *_, **__: dict.fromkeys(columns(cfg), 1.0)
        )
        yield


@pytest.fixture(scope="module")
def base() -> DictConfig:
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["experiment=smoke", "output_dir=unused", *SMALL]
        return compose("config", [*words, """teacher=['steps=1',"init=''"]"""])


@pytest.fixture(scope="module")
def made(base: DictConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and its labels; no test may change it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(base, run)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """The current folder of a test, with a copy of the teacher."""
    shutil.copytree(made / "outputs" / "teachers", tmp_path / "outputs" / "teachers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ready(made: Path, place: Path) -> Path:
    """The current folder of a test, with a copy of the teacher and its labels."""
    shutil.copytree(made / "outputs" / "labels", place / "outputs" / "labels")
    return place


def change(cfg: DictConfig, *words: str) -> DictConfig:
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(words)))


def never(cfg: Config) -> None:
    raise AssertionError(f"{cfg.output_dir} is trained again")


def label_file(cfg: DictConfig, run: Callable = never) -> Path:
    return Path(dict(prepare(cfg, run))["data.automatic"])


def info_of(cfg: DictConfig, run: Callable = never) -> dict[str, Any]:
    return json.loads(label_file(cfg, run).read_text())["info"]


def records(folder: Path) -> dict[str, int]:
    """When each file of records was written."""
    return {
        str(path): path.stat().st_mtime_ns
        for path in (folder / "outputs" / "labels").glob("*/records/*.jsonl")
    }


def test_a_teacher_is_trained_and_its_labels_tell_of_it(base, made):
    (folder,) = (made / "outputs" / "teachers").glob("*-seed0")
    assert [row["step"] for row in lines(folder) if "lr" in row] == [1]
    (file,) = (made / "outputs" / "labels").glob("*/*.json")
    assert file.with_suffix(".png").stat().st_size > 1000
    content = json.loads(file.read_text())
    labelled = json.loads((write_builtin(BUILTIN) / "annotations" / "train.json").read_text())
    assert content["categories"] == labelled["categories"]
    teacher = load_teacher(str(folder), labelled)
    assert content["info"]["digest"] == teacher.digest == digest_weights(teacher.model)
    assert content["info"]["transforms"] == asdict(to_dataclass(base).transforms)
    assert 0 < len(content["annotations"]) <= 80
    assert {a["source"] for a in content["annotations"]} == {"auto"}


def test_labels_and_checkpoints_name_the_same_list_of_labelled_images(base, made):
    (file,) = (made / "outputs" / "labels").glob("*/*.json")
    info = json.loads(file.read_text())["info"]
    assert info["labelled"] == str(write_builtin(BUILTIN) / "annotations" / "train.json")
    (folder,) = (made / "outputs" / "teachers").glob("*-seed0")
    stored = checkpoint.load(folder / "checkpoint-00000001.pt")["parts"]["labelled"]
    content = keep_sound(read_content(info["labelled"]), "train.json", "keypoints")
    of_annotate = count_labelled(content, "train.json").digest
    assert info["labelled_list"] == stored == of_annotate


def test_a_runs_precision_and_merge_reach_its_labels(base, place):
    cfg = change(base, "amp=true", "merge.heatmaps=logit", "transforms.scales=[]")
    job = stages.Labelling(teacher_of(base), to_dataclass(cfg), place / "records")
    stages.label_share(job)
    info = read_info(job.folder)
    assert info["amp"]
    assert info["merge"]["heatmaps"] == "logit"
    assert stages.is_labelled(job)


def test_other_thresholds_take_the_same_findings_and_other_transforms_do_not(
    base, place, monkeypatch, capsys
):
    first = label_file(base)
    before = records(place)
    assert len(before) == 1
    more = label_file(change(base, "labels.factor=2"))
    assert more.parent == first.parent
    assert more.name != first.name
    counts = [len(json.loads(file.read_text())["annotations"]) for file in (first, more)]
    assert counts[1] > counts[0]
    assert records(place) == before
    assert "is trained first" not in capsys.readouterr().out
    other = label_file(change(base, "transforms.flip=false"))
    assert other.parent != first.parent
    assert len(records(place)) == 2
    monkeypatch.setenv("RANK", "0")  # torchrun takes labels that are there
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert label_file(base) == first


@pytest.mark.slow
def test_findings_of_two_processes_are_taken_by_one(base, place, monkeypatch):
    before = label_file(base)
    content = before.read_text()
    folder, settings = before.parent, to_dataclass(base)
    shutil.rmtree(folder)
    job = stages.Labelling(teacher_of(base), settings, folder)
    for rank in range(2):
        annotate(
            stages.read_teacher(job),
            data.find_unlabelled(settings.data, settings.task),
            settings.transforms,
            settings.merge,
            folder / "records",
            shard=(rank, 2),
        )
    times = records(place)
    assert len(times) == 2
    assert label_file(base) == before
    assert before.read_text() == content
    assert records(place) == times


def teacher_of(cfg: DictConfig) -> Path:
    return Path(to_dataclass(find_teacher(cfg)).output_dir)


def test_findings_of_other_weights_stop(base, ready):
    digest = info_of(base)["digest"]
    (shard,) = records(ready)
    Path(shard).write_text(Path(shard).read_text().replace(digest, "0" * 64))
    with pytest.raises(ValueError, match=r"digest is 0000.* remove .*records"):
        prepare(change(base, "labels.factor=2"), never)


def test_a_teacher_that_was_cut_off_goes_on_to_the_same_weights(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = find_teacher(change(base, "save_every=1", "teacher=['steps=2',\"init=''\"]"))
    stages.train_teacher(cfg, run)
    settings = to_dataclass(cfg)
    folder = Path(settings.output_dir)
    before = saved(settings)["model"]
    (folder / "result.json").unlink()
    (folder / "checkpoint-00000002.pt").unlink()
    stages.train_teacher(cfg, run)
    assert all(torch.equal(before[name], value) for name, value in saved(settings)["model"].items())
    assert [row["step"] for row in lines(folder) if "lr" in row] == [1, 2]
    stages.train_teacher(cfg, never)


@pytest.mark.slow
def test_a_second_round_has_another_teacher_the_first_rounds_student(base, place):
    again = change(base, "rounds=2")
    first, second = info_of(base), info_of(again, run)
    assert first["digest"] != second["digest"]
    student = to_dataclass(with_files(find_teacher(again), never))
    assert student.output_dir in second["teacher"]
    assert student.data.automatic == str(label_file(base))
    assert student.steps == 2
    assert saved(student)["options"]["data.automatic"] == student.data.automatic
    assert len(list((place / "outputs" / "teachers").glob("*-seed0"))) == 2
    assert dict(prepare(again, never))["rounds"] == "1"


def test_a_fine_tuned_student_starts_with_its_teachers_weights(base, place):
    cfg = to_dataclass(with_files(change(base, "init=teacher"), never))
    (folder,) = (place / "outputs" / "teachers").glob("*-seed0")
    assert cfg.init == str(folder)
    training = data.build_training(cfg.data, cfg.task)
    state = train.build(cfg, training).state_dict()
    weights = checkpoint.load(folder / "checkpoint-00000001.pt")["parts"]["model"]
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    retrained = to_dataclass(with_files(base, never))
    assert retrained.init == ""
    other = train.build(retrained, training).state_dict()
    assert not torch.equal(other["backbone.fine.0.weight"], state["backbone.fine.0.weight"])


@pytest.mark.parametrize("task", ["boxes", "masks"])
def test_the_other_tasks_go_from_teacher_to_student(task, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "evaluate", evaluate)
    few = ["transforms.flip=false", "data.builtin.labelled=4", "data.builtin.test=3"]
    few += ["data.builtin.unlabelled=3", *(["data.builtin.classes=shape"] * (task == "boxes"))]
    cfg = change(base, f"task={task}", f"output_dir={tmp_path / 'run'}", *few)
    found = run(to_dataclass(with_files(cfg, run)))
    assert {"box_AP", "label_AP", *(["mask_AP"] * (task == "masks"))} <= found.keys()
    assert "keypoint_AP" not in found
    assert [row["step"] for row in lines(tmp_path / "run") if "lr" in row] == [1, 2]


def test_a_supervised_run_needs_no_teacher(base):
    assert prepare(change(base, "data.automatic=''"), never) == []
    assert prepare(change(base, "data.automatic=auto.json"), never) == []


def test_a_fine_tuned_student_must_say_what_its_teacher_starts_from(base):
    with pytest.raises(ValueError, match="init=teacher: say in `teacher`"):
        prepare(change(base, "init=teacher", "teacher=['steps=1']"), never)


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("init=no.pth", r"init=no\.pth does not exist"),
        ("data.unlabelled=nowhere", "data.unlabelled=nowhere is neither one split of"),
        ("data.unlabelled=train+val", r"data.unlabelled=train\+val is neither one split of"),
        ("labels.factor=0", "labels.factor=0 would keep no label"),
    ],
)
def test_what_the_student_lacks_shows_before_the_teacher_is_trained(word, fault, base):
    with pytest.raises((ValueError, UserError), match=fault):
        prepare(change(base, word), never)


def test_a_resumed_student_of_other_options_stops_before_another_teacher(base, ready):
    folder = ready / "student"
    cfg = change(base, f"output_dir={folder}")
    settings = to_dataclass(with_files(cfg, never))
    checkpoint.lock(folder)
    checkpoint.save(folder, 2, options=Options(settings, may_change(settings)))
    checkpoint.unlock(folder)
    (folder / "checkpoint-00000003.pt").write_bytes(b"cut off")  # it tells nothing
    prepare(change(cfg, "save_every=1", "steps=3"), never)
    before = records(ready)
    for name, value in (("lr", "0.1"), ("transforms.flip", "False"), ("data.builtin.labelled", 9)):
        fault = f"0002.pt was written with .*, this run has .*{name}={value}.*: give the same, or"
        with pytest.raises(checkpoint.CheckpointError, match=fault):
            prepare(change(cfg, f"{name}={value}"), never)
    assert records(ready) == before


def test_weights_of_another_network_or_format_show_before_the_teacher_is_trained(base, tmp_path):
    file = tmp_path / "init.pth"
    network = to_dataclass(base).network
    wide = build_detector("keypoints", 1, 9, replace(network, channels=32, hidden=64))
    for state, fault in ((wide.state_dict(), "another network"), ({"a": torch.ones(1)}, "format")):
        torch.save(state, file)
        with pytest.raises(ValueError, match=rf"init\.pth is .*{fault}"):
            prepare(change(base, f"init={file}"), never)


def test_sizes_that_coincide_are_told_before_the_teacher_is_trained(base, place, capsys):
    words = ["transforms.scales=[80,90,99]", "transforms.max_size=99", "data.truth=''"]
    photos = place / "photos"
    photos.mkdir()
    Image.new("RGB", (96, 48)).save(photos / "a.png")
    cfg = change(base, f"data.unlabelled={photos}", *words)
    label_file(cfg)
    told = "warning: the scales 80, 90, 99 are the same for 1 of 1 images, of 96 x 48 pixels"
    assert capsys.readouterr().out.startswith(told)
    label_file(cfg)
    assert told not in capsys.readouterr().out  # the labels are there


def test_labels_and_findings_that_were_moved_are_not_made_again(base, made, ready):
    before = records(ready)
    (first,) = (made / "outputs" / "labels").glob("*/*.json")
    assert label_file(base).relative_to(ready) == first.relative_to(made)
    label_file(change(base, "labels.factor=2"))
    assert records(ready) == before


def test_annotations_that_were_changed_want_another_teacher(base, tmp_path):
    shutil.copytree(write_builtin(BUILTIN), tmp_path / "root")
    cfg = change(base, "data.name=coco_format", f"data.root={tmp_path / 'root'}")
    before = find_teacher(cfg).output_dir
    assert find_teacher(cfg).output_dir == before
    file = tmp_path / "root" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    assert find_teacher(cfg).output_dir != before


def test_a_run_whose_labels_were_changed_does_not_go_on(base, ready):
    cfg = change(base, f"output_dir={ready / 'changed'}", "steps=1")
    settings = to_dataclass(with_files(cfg, never))
    content = json.loads(Path(settings.data.automatic).read_text())
    settings.data.automatic = str(ready / "auto.json")
    Path(settings.data.automatic).write_text(json.dumps(content))
    run(settings)
    content["annotations"][0]["bbox"][0] += 1
    Path(settings.data.automatic).write_text(json.dumps(content))
    with pytest.raises(checkpoint.CheckpointError, match=r"contents of data\.automatic"):
        run(replace(settings, steps=2))


def test_an_empty_text_in_the_teachers_words_is_as_on_the_command_line(base):
    short = change(base)
    short.teacher = ["steps=1", "init="]
    assert find_teacher(short) == find_teacher(base)


def test_torchrun_has_no_second_training_to_start(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun and Slurm start one run.*processes=N"):
        prepare(base, never)


def test_photos_of_ones_own_are_labelled(base, place):
    images = sorted((write_builtin(BUILTIN) / "images" / "shifted").glob("*.png"))[:3]
    (place / "photos" / "deep").mkdir(parents=True)
    for number, image in enumerate(images):
        shutil.copy(image, place / "photos" / ("deep" if number else ".") / f"{number}.png")
    cfg = change(base, f"data.unlabelled={place / 'photos'}", "data.truth=''", "labels.factor=3")
    settings = to_dataclass(with_files(cfg, never))
    content = json.loads(Path(settings.data.automatic).read_text())
    assert {entry["file_name"] for entry in content["images"]} <= {
        "0.png",
        "deep/1.png",
        "deep/2.png",
    }
    assert content["info"]["folder"] == str(place / "photos")
    before = label_file(cfg)
    shutil.copy(images[0], place / "photos" / "3.png")
    assert label_file(cfg).parent != before.parent  # they are looked at, too
    settings.data.bad_images = "skip"
    assert data.find_unlabelled(settings.data, "keypoints").bad_images == "skip"
    training = data.build_training(settings.data, settings.task)
    assert len(training) == 12 + len(content["images"]) > 12
    assert training[12][1]["automatic"]


@pytest.mark.slow
def test_labels_of_a_network_of_pixels_are_where_its_objects_are(base, place):
    one = ["transforms.flip=false", "transforms.scales=[]"]
    settings = to_dataclass(change(base, *one))
    job = stages.Labelling(teacher_of(base), settings, place / "own")
    stages.label_share(job)
    manual = data.build_manual(settings.data, settings.task)
    found = []
    for offset in (0.5, 0.0):
        settings.data.joint_offset = offset
        stages.write_labels(job, manual, place / f"{offset}.json")
        content = json.loads((place / f"{offset}.json").read_text())
        points = torch.tensor([a["keypoints"] for a in content["annotations"]]).view(-1, 3)
        found.append(points[points[:, 2] > 0])
    assert len(found[0]) > 9
    # The network's output is the pixel itself, from which files have taken off 0.5.
    torch.testing.assert_close(found[1][:, :2], found[0][:, :2] + 0.5)


def test_a_student_without_any_label_stops_before_its_first_step(base, place):
    settings = to_dataclass(with_files(change(base, "labels.factor=0.001"), never))
    with pytest.raises(ValueError, match=r"json has no label: .*labels\.factor"):
        run(settings)
    assert not Path(settings.output_dir, "metrics.jsonl").exists()


def test_two_runs_at_once_wait_for_one_teacher(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained: list[str] = []

    def slowly(cfg: Config) -> None:
        trained.append(cfg.output_dir)
        time.sleep(0.5)
        result = {"metrics": {}, "steps": cfg.steps}
        files.write_text(Path(cfg.output_dir, "result.json"), json.dumps(result))

    monkeypatch.setattr("common.dist.launch", lambda function, cfg, processes: function(cfg))
    found: list = []
    words = ["data.automatic=''", "init=teacher"]
    rows = [change(base, *words, f"transforms.flip={flip}") for flip in ("true", "false")]
    threads = [
        threading.Thread(target=lambda cfg=cfg: found.append(dict(prepare(cfg, slowly))["init"]))
        for cfg in rows
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert found == trained * 2
    assert "Waiting for" in capsys.readouterr().out
    record = OmegaConf.load(Path(trained[0], ".hydra", "config.yaml"))
    assert (record.steps, record.data.automatic, list(record.teacher)) == (1, "", [])


def test_settings_side_by_side_get_their_files_and_teachers_have_all_cores(base, ready):
    cfg = change(base, f"output_dir={ready / 'run'}", "threads=0")
    OmegaConf.set_struct(cfg, False)
    cfg.versus = {"teacher": ["only_evaluate=true", "init=teacher", "data.automatic=''"]}
    cfg.versus["student"] = []
    made = stages.prepare_all(cfg, never)
    (folder,) = (ready / "outputs" / "teachers").glob("*-seed0")
    words = {name: dict(word.split("=", 1) for word in own) for name, own in made.versus.items()}
    assert words["teacher"]["init"] == str(folder)
    assert words["student"]["data.automatic"] == str(label_file(base))
    assert "init" not in words["student"]


def cut(shared: Path, root: Path, images: int, task: str) -> Path:
    """The first images of coco_mini; those to test on are unlabelled, too."""
    kind = "person_keypoints" if task == "keypoints" else "instances"
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(shared / "coco_mini" / split)
        name = f"annotations/{kind}_{split}.json"
        content = json.loads((shared / "coco_mini" / name).read_bytes())
        people = {a["image_id"] for a in content["annotations"] if a.get("num_keypoints", 1)}
        content["images"].sort(key=lambda entry: entry["id"] not in people)  # they come first
        content["images"] = content["images"][:images]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (root / name).write_text(json.dumps(content))
    info = {"images": content["images"]}
    (root / "annotations" / "image_info_unlabeled2017.json").write_text(json.dumps(info))
    (root / "unlabeled2017").symlink_to(shared / "coco_mini" / "val2017")
    return root


@pytest.mark.parametrize(
    ("task", "images"),
    [
        ("keypoints", 6),
        pytest.param("boxes", 6, marks=pytest.mark.slow),
        pytest.param("keypoints", 80, marks=pytest.mark.slow),
        pytest.param("boxes", 80, marks=pytest.mark.slow),
    ],
)
def test_real_photos_with_and_without_labels(task, images, shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "evaluate", evaluate)
    root = cut(shared_data, tmp_path / "coco", images, task)
    words = ["experiment=smoke", "data=coco", f"data.root={root}", f"task={task}"]
    words += ["data.workers=0", "transforms.scales=[]", "labels.factor=3", "merge.score=0.001"]
    words += ["labels.keep_empty=true", f"output_dir={tmp_path / 'run'}", "network.detections=4"]
    words += ["network.short_sides=[48]", "test.tta=false", "test.images=0", "steps=2"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*words, """teacher=['steps=1',"init=''"]"""])
    found = run(to_dataclass(with_files(cfg, run)))
    (file,) = (tmp_path / "outputs" / "labels").glob("*/*.json")
    content = json.loads(file.read_text())
    assert len(content["categories"]) == (1 if task == "keypoints" else 80)
    assert len(content["images"]) == min(images, 79)
    assert content["annotations"]
    assert math.isfinite(found["keypoint_AP" if task == "keypoints" else "box_AP"])
    assert math.isnan(found["label_AP"])  # nobody knows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: Merge(vote=2.0), r"merge.vote=2.0: give 0 to 1"),
        (lambda: Merge(nms=math.nan), r"merge.nms=nan: give 0 to 1"),
        (lambda: Merge(limit=0), r"merge.limit=0"),
        (lambda: Transforms(scales=[48], max_size=40), r"is below the scales"),
        (lambda: Transforms(scales=[48, 4001]), r"scales=\[48, 4001\]: give 1 to 4000 pixels"),
        (lambda: Transforms(max_size=20_000), "max_size=20000: give 10000 pixels at most"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        options()


def test_a_teacher_of_another_task_is_not_trained(base):
    cfg = OmegaConf.merge(base, {"teacher": ["steps=1", "init=''", "task=boxes"]})
    with pytest.raises(ValueError, match=r"task=boxes is not the student's, keypoints"):
        find_teacher(cfg)


def test_a_photo_that_cannot_be_read_shows_before_the_teacher_is_trained(base, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cut.png").write_bytes(b"")
    folder = str(tmp_path / "photos")
    cfg = OmegaConf.merge(base, {"data": {"unlabelled": folder, "truth": ""}})
    with pytest.raises(ValueError, match=r"cut.png"):
        prepare(cfg, lambda _: pytest.fail("a teacher was trained"))
