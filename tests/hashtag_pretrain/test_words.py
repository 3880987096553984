"""Tags, WordNet, the rules that merge tags; the counts of WordNet 3.0 and ImageNet-1k are real."""

import pytest

from hashtag_pretrain.words.canonical import find_ambiguous, find_keys
from hashtag_pretrain.words.tags import normalise
from hashtag_pretrain.words.wordnet import WordNet, read_wordnet
from tests.hashtag_pretrain.wordnets import WNIDS, read_whole, write_excerpt

CRANES = ["n02012849", "n03126707"]  # the bird and the machine, both of ImageNet-1k


@pytest.fixture(scope="module")
def excerpt(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return read_wordnet(write_excerpt(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture(scope="module")
def whole() -> WordNet:
    return read_whole()


@pytest.fixture(scope="module")
def imagenet_tags(whole: WordNet) -> list[str]:
    return sorted({tag for wnid in WNIDS for tag in whole.tags(wnid)})


def labels(tags: list[str], wordnet: WordNet, **options) -> list[list[str]]:
    """The tags that merge, sorted."""
    groups: dict[frozenset[str], list[str]] = {}
    for tag, key in find_keys(tags, wordnet, **options).items():
        groups.setdefault(key, []).append(tag)
    return sorted(sorted(group) for group in groups.values())


# Spelling


@pytest.mark.parametrize(
    ("tag", "normal"),
    [
        ("#Brown_Bear", "brownbear"),
        ("brown bear", "brownbear"),
        ("jack-o'-lantern", "jackolantern"),
        ("Café", "cafe"),
        ("ＤＯＧ２", "dog2"),  # full width
        ("24/7", "247"),
        ("#犬🐕", ""),
        ("", ""),
    ],
)
def test_a_tag_is_written_in_lower_case_letters_and_digits(tag, normal):
    assert normalise(tag) == normal == normalise(normal)


# WordNet's files


def test_a_synset_has_its_words_and_a_lemma_its_senses_in_order(excerpt):
    assert excerpt.lemmas["n02132136"] == ["brown_bear", "bruin", "Ursus_arctos"]
    assert excerpt.tags("n02132136") == ["brownbear", "bruin", "ursusarctos"]
    assert excerpt.by_tag["bruin"] == ["n02132320", "n02132136"]
    assert len(excerpt.by_tag["crane"]) == 5
    assert "1" not in excerpt.senses  # of the licence


def test_first_senses_of_all_lemmas_of_a_tag_come_before_second_ones():
    wordnet = WordNet({}, {"egg_cup": ["n1", "n2"], "eggcup": ["n3", "n2", "n4"]})
    assert wordnet.by_tag == {"eggcup": ["n1", "n3", "n2", "n4"]}


def test_wordnet_3_1_is_refused(tmp_path):
    write_excerpt(tmp_path, version="3.1")
    with pytest.raises(ValueError, match=r"data.noun is not of WordNet 3.0.*wordnet-base"):
        read_wordnet(tmp_path)


def test_an_absent_wordnet_is_named_with_the_package_to_install(tmp_path):
    with pytest.raises(ValueError, match=r"data.noun cannot be read.*wordnet-base"):
        read_wordnet(tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("data.noun", "02132999 05 n 03 bear 0", r"data.noun, line 13 is none"),
        ("data.noun", "PK\x03\x04", r"data.noun, line 13 is none"),
        ("index.noun", "bear n 2 1 @ 2 0 02132136 0213", r"index.noun, line \d+ is none"),
        ("index.noun", "bear n 1 1 @ 1 0 01234567", r"index.noun gives bear synsets that data"),
    ],
)
def test_a_damaged_wordnet_is_named(tmp_path, file, line, message):
    path = write_excerpt(tmp_path) / file
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ValueError, match=message):
        read_wordnet(tmp_path)


def test_a_class_that_is_no_noun_synset_is_named(excerpt):
    with pytest.raises(ValueError, match="n00000001 is no noun synset"):
        excerpt.tags("n00000001")


# The rules, on the excerpt: the table of the card's Sec. 2.2 by hand

BEARS = ["brownbear", "bruin", "ursusarctos"]


def test_strict_merges_tags_of_the_same_synsets(excerpt):
    assert labels(BEARS, excerpt, rule="strict") == [["brownbear", "ursusarctos"], ["bruin"]]


def test_vocabulary_forgets_synsets_outside_the_classes(excerpt):
    assert labels(BEARS, excerpt, rule="vocabulary", classes=["n02132136"]) == [BEARS]


def test_components_follow_shared_synsets(excerpt):
    tags = [*BEARS, "grus", "hartcrane", "crane", "dog"]
    found = labels(tags, excerpt, rule="components")
    assert found == [BEARS, ["crane", "grus", "hartcrane"], ["dog"]]
    assert find_keys(BEARS, excerpt, rule="components")["brownbear"] == {"n02132136", "n02132320"}


def test_components_are_cut_where_the_tag_between_is_absent(excerpt):
    assert labels(["grus", "hartcrane"], excerpt, rule="components") == [["grus"], ["hartcrane"]]


def test_first_sense_alone_makes_crane_a_writer(excerpt):
    keys = {
        rule: find_keys(["crane"], excerpt, rule=rule, classes=CRANES)["crane"]
        for rule in ("strict", "vocabulary", "components", "first_sense")
    }
    assert keys["first_sense"] == {"n10914447"}
    assert len(keys["strict"]) == 5
    assert keys["vocabulary"] == keys["components"] == set(CRANES)


def test_classes_leave_out_tags_that_name_none_of_them(excerpt):
    for rule in ("strict", "vocabulary", "components", "first_sense"):
        found = find_keys(["crane", "grus", "dog"], excerpt, rule=rule, classes=CRANES)
        assert found.keys() == {"crane"}


def test_a_tag_is_ambiguous_by_all_synsets_or_by_the_classes(excerpt):
    tags = [*BEARS, "crane", "maillot", "nonsense"]
    assert find_ambiguous(tags, excerpt) == {"bruin", "crane", "maillot"}
    classes = ["n02132136", *CRANES]
    assert find_ambiguous(tags, excerpt, rule="vocabulary", classes=classes) == {"crane"}
    assert find_ambiguous(tags, excerpt, rule="strict", classes=classes) == {
        "bruin",
        "crane",
        "maillot",
    }


def test_none_merges_nothing_and_needs_no_wordnet():
    assert find_keys(["dog", "selfie"], None, rule="none") == {
        "dog": {"dog"},
        "selfie": {"selfie"},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "loose"}, "rule=loose: give one of strict, vocabulary"),
        ({"rule": "vocabulary"}, "rule=vocabulary needs classes"),
        ({"rule": "none", "classes": CRANES}, "rule=none does not look into WordNet"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(excerpt, options, message):
    with pytest.raises(ValueError, match=message):
        find_keys(["crane"], excerpt, **options)


def test_a_rule_without_wordnet_is_refused():
    with pytest.raises(ValueError, match="rule=strict needs WordNet"):
        find_keys(["crane"], None)


# WordNet 3.0 as it is


def test_wordnet_has_its_published_counts(whole):
    assert len(whole.lemmas) == 82_115
    assert sum(map(len, whole.lemmas.values())) == 146_347
    assert len(whole.by_tag) == 116_654
    assert len(find_ambiguous(whole.by_tag, whole)) == 15_955
    assert len({*find_keys(whole.by_tag, whole).values()}) == 77_225


def test_both_files_of_wordnet_agree_on_the_synsets_of_each_tag(whole):
    found: dict[str, set[str]] = {}
    for wnid in whole.lemmas:
        for tag in whole.tags(wnid):
            found.setdefault(tag, set()).add(wnid)
    assert found == {tag: set(senses) for tag, senses in whole.by_tag.items()}


def test_the_classes_of_imagenet_have_1860_lemmas_and_1804_tags(whole, imagenet_tags):
    assert len(set(WNIDS)) == 1000
    assert sum(len(whole.lemmas[wnid]) for wnid in WNIDS) == 1860
    assert len(imagenet_tags) == 1804
    assert len(find_ambiguous(imagenet_tags, whole)) == 505
    found = find_ambiguous(imagenet_tags, whole, rule="vocabulary", classes=WNIDS)
    assert len(found) == 19
    assert found > {"crane", "maillot"}


@pytest.mark.parametrize(
    ("rule", "count"),
    [("strict", 1284), ("vocabulary", 1011), ("components", 982), ("first_sense", 1208)],
)
def test_imagenets_tags_become_so_many_labels(whole, imagenet_tags, rule, count):
    keys = find_keys(imagenet_tags, whole, rule=rule, classes=WNIDS)
    assert len(keys) == 1804
    assert len(set(keys.values())) == count


def test_first_sense_drops_121_classes_of_imagenet(whole, imagenet_tags):
    keys = find_keys(imagenet_tags, whole, rule="first_sense", classes=WNIDS)
    assert len({synset for key in keys.values() for synset in key} & set(WNIDS)) == 879


def test_bruin_merges_with_the_brown_bear_by_vocabulary_alone(whole):
    assert labels(BEARS, whole) == [["brownbear", "ursusarctos"], ["bruin"]]
    assert labels(BEARS, whole, rule="vocabulary", classes=WNIDS) == [BEARS]
    assert find_keys(["crane"], whole, rule="first_sense")["crane"] == {"n10914447"}
