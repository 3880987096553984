"""Vocabularies: their file, what is built from counts of tags, classes by their tags."""

import json
import os
from dataclasses import replace

import pytest

from hashtag_pretrain.words.vocabulary import Vocabulary, build, class_tags
from hashtag_pretrain.words.wordnet import WordNet, read_wordnet
from tests.hashtag_pretrain.wordnets import WNIDS, read_whole, write_excerpt

COUNTS = {
    "#BrownBear": 5,
    "brown_bear": 2,  # the same tag
    "ursusarctos": 9,
    "bruin": 4,
    "crane": 30,
    "dog": 20,
    "selfie": 100,
    "love": 50,
    "犬": 7,
}
BEAR = "n02132136"
CRANES = ["n02012849", "n03126707"]


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return read_wordnet(write_excerpt(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture
def pets() -> Vocabulary:
    return Vocabulary(
        ["dog", "cat"],
        {"dog": 0, "domesticdog": 0, "cat": 1},
        [["n02084071"], ["n02121620"]],
        [12, 3],
    )


# The file


def test_a_vocabulary_is_read_as_it_was_written(tmp_path, pets):
    pets.write(tmp_path / "vocab.json")
    assert Vocabulary.read(tmp_path / "vocab.json") == pets
    assert os.listdir(tmp_path) == ["vocab.json"]
    assert json.loads((tmp_path / "vocab.json").read_text())["dog"] == {
        "id": 0,
        "members": ["dog", "domesticdog"],
        "synsets": ["n02084071"],
        "count": 12,
    }


def test_an_images_tags_become_a_sorted_set_of_ids(pets):
    tags = ["#Cat", "love", "domestic_dog", "DOG", "", "犬"]
    assert pets.look_up(tags) == [0, 1]
    assert pets.look_up(["love"]) == []


def test_the_digest_follows_the_ids_of_tags_and_nothing_else(tmp_path, pets):
    pets.write(tmp_path / "vocab.json")
    assert Vocabulary.read(tmp_path / "vocab.json").digest == pets.digest
    assert replace(pets, counts=[0, 0]).digest == pets.digest
    assert replace(pets, members={**pets.members, "kitty": 1}).digest != pets.digest
    assert replace(pets, names=["hound", "cat"]).digest != pets.digest


def test_a_file_by_hand_needs_ids_and_members_alone_in_any_order_and_spelling(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text('{"b": {"id": 1, "members": ["#B", "b!"]}, "a": {"id": 0, "members": ["A"]}}')
    assert Vocabulary.read(path) == Vocabulary(["a", "b"], {"a": 0, "b": 1}, [[], []], [0, 0])


def test_members_without_a_letter_or_digit_are_nobodys(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text('{"a": {"id": 0, "members": ["a", "!"]}, "b": {"id": 1, "members": ["?"]}}')
    assert Vocabulary.read(path).members == {"a": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"id": 0, "members": []}, "b": {"id": 2, "members": []}}', "no label has the id 1"),
        ('{"a": {"id": 0, "members": []}, "b": {"id": 0, "members": []}}', "'a' and 'b' both have"),
        ('{"a": {"id": 1, "members": ["a"]}}', "no label has the id 0"),
        (
            '{"a": {"id": 0, "members": ["x"]}, "b": {"id": 1, "members": ["#X"]}}',
            "'x' is a member of 'a' and of 'b'",
        ),
        ('{"a": {"id": 0, "members": []}, "a": {"id": 1, "members": []}}', "'a' stands twice"),
        ('{"a": {"id": "0", "members": []}}', "label 'a' has no whole number as \"id\""),
        ('{"a": {"id": 0, "members": "a"}}', "label 'a' has no list of strings as \"members\""),
        ('{"a": {"id": 0, "members": [], "count": -1}}', 'has no count of uses as "count"'),
        ('{"a": 0}', "label 'a' is no object"),
        ("[]", "is no vocabulary"),
        ("{}", "is no vocabulary"),
        ('{"a": ', "is no vocabulary"),
        ("[" * 100_000, "is no vocabulary"),
    ],
)
def test_a_file_with_a_fault_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "vocab.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)


def test_an_absent_vocabulary_is_named_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(ValueError, match=r"vocab.json does not exist.*prepare.py vocabulary"):
        Vocabulary.read(tmp_path / "vocab.json")


# From counts of tags


def test_labels_are_the_nouns_merged_and_sorted_by_their_uses(wordnet):
    vocabulary, _ = build(COUNTS, wordnet)
    assert vocabulary.names == ["crane", "dog", "ursusarctos", "bruin"]
    assert vocabulary.counts == [30, 20, 16, 4]
    assert vocabulary.synsets[2] == [BEAR]
    assert vocabulary.look_up(["Brown Bear", "selfie"]) == [2]


def test_synonyms_that_nobody_used_yet_are_members_too(wordnet):
    vocabulary, _ = build(COUNTS, wordnet)
    assert vocabulary.look_up(["canisfamiliaris"]) == [1]
    assert vocabulary.look_up(["cat"]) == []  # nobody used any word for it


def test_the_most_frequent_are_taken_after_merging(wordnet):
    vocabulary, report = build(COUNTS, wordnet, most=3)
    assert vocabulary.names == ["crane", "dog", "ursusarctos"]  # 16 uses of two tags: before bruin
    assert (report.cut, report.rare) == (1, 0)


def test_labels_of_few_uses_are_left_out(wordnet):
    vocabulary, report = build(COUNTS, wordnet, least=16)
    assert vocabulary.counts == [30, 20, 16]
    assert (report.cut, report.rare) == (0, 1)


def test_classes_take_their_synonyms_alone(wordnet):
    vocabulary, report = build(COUNTS, wordnet, classes=[BEAR, "n02121620"], rule="vocabulary")
    assert vocabulary.names == ["ursusarctos"]
    assert vocabulary.look_up(["bruin", "brownbear"]) == [0]
    assert vocabulary.counts == [20]
    assert report.missing == ["n02121620"]
    assert list(report.unknown) == ["selfie", "love", "crane", "dog", ""]


def test_ambiguous_tags_are_reported_and_dropped_where_that_is_asked(wordnet):
    kept, report = build(COUNTS, wordnet)
    dropped, again = build(COUNTS, wordnet, ambiguous="drop")
    assert report.ambiguous == again.ambiguous == {"crane": 30, "bruin": 4}
    assert kept.look_up(["crane", "bruin"]) == [0, 3]
    assert dropped.names == ["dog", "ursusarctos"]
    assert dropped.look_up(["crane", "bruin"]) == []


def test_the_rule_vocabulary_drops_only_what_is_ambiguous_among_the_classes(wordnet):
    options = {"rule": "vocabulary", "classes": [BEAR, *CRANES]}
    vocabulary, report = build(COUNTS, wordnet, ambiguous="drop", **options)
    assert report.ambiguous == {"crane": 30}
    assert vocabulary.look_up(["bruin"]) == [0]
    assert report.missing == CRANES


def test_stop_words_are_left_out_and_reported(wordnet):
    vocabulary, report = build(COUNTS, wordnet, stop=["#Dog", "love", "cat"])
    assert "dog" not in vocabulary.members
    assert report.stopped == {"dog": 20}
    assert "love" in report.unknown


def test_words_that_nobody_used_link_no_others(wordnet):
    vocabulary, _ = build({"grus": 1, "hartcrane": 2}, wordnet, rule="components")
    assert vocabulary.names == ["hartcrane", "grus"]


def test_without_wordnet_each_tag_is_a_label():
    vocabulary, report = build(COUNTS, None, rule="none", most=2)
    assert vocabulary.names == ["selfie", "love"]
    assert vocabulary.synsets == [[], []]
    assert (report.unknown, report.cut) == ({"": 7}, 5)


def test_the_report_says_what_share_of_the_tags_is_kept(wordnet):
    _, report = build(COUNTS, wordnet, classes=[*CRANES, "n02121620"])
    assert (report.uses, report.kept) == (227, 30)
    assert report.lines(examples=1) == [
        "30 of 227 uses of tags (13.2 %) are labels",
        "unknown: 7 tags, #selfie 100, ...",
        "ambiguous: 1 tags, #crane 30",
        "classes without a label: 1, n02121620",
    ]


def test_the_same_counts_in_another_order_give_the_same_vocabulary(wordnet):
    counts = dict.fromkeys(["dog", "grus", "crane", "truecat", "cat"], 3)
    first, _ = build(counts, wordnet)
    second, _ = build(dict(reversed(counts.items())), wordnet)
    assert first == second
    assert first.digest == second.digest
    assert first.names == ["cat", "crane", "dog", "grus"]  # cat has 6 uses, the others 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ambiguous": "ask"}, "ambiguous=ask: give keep or drop"),
        ({"least": 0}, "least=0"),
        ({"most": 0}, "most=0"),
        ({"least": 1000}, "none of 8 tags becomes a label"),
        ({"classes": ["n1"]}, "n1 is no noun synset"),
        ({"rule": "vocabulary"}, "needs classes"),
    ],
)
def test_what_cannot_be_built_is_refused(wordnet, options, message):
    with pytest.raises(ValueError, match=message):
        build(COUNTS, wordnet, **options)


# Classes by their tags


def test_a_class_has_the_labels_whose_key_contains_it(wordnet):
    vocabulary, _ = build(COUNTS, wordnet)
    wnids = [BEAR, "n02132320", CRANES[0], CRANES[1], "n02121620", "n99999999"]
    assert class_tags(vocabulary, wnids) == [[2, 3], [3], [0], [0], [], []]


@pytest.mark.parametrize(
    ("rule", "size", "missing"),
    [
        ("strict", 1284, 0),
        ("vocabulary", 1011, 0),
        ("components", 982, 0),
        ("first_sense", 1208, 121),
    ],
)
def test_first_sense_alone_leaves_classes_of_imagenet_without_a_label(rule, size, missing):
    wordnet = read_whole()
    counts = {tag: 1 for wnid in WNIDS for tag in wordnet.tags(wnid)}
    vocabulary, report = build(counts, wordnet, rule=rule, classes=WNIDS)
    assert len(vocabulary) == size
    assert len(report.missing) == missing
    assert sum(not labels for labels in class_tags(vocabulary, WNIDS)) == missing
