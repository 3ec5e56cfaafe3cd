"""Among whose classes a label is looked for: candidates, what counts as right, and one pass of the images for all that is asked."""

import logging

import open_clip
import pytest
import torch
from torch.utils.data import Dataset

from gift_shared.errors import ConfigError
from gift_shared.manifests import JoinedClasses, Manifests, TaskManifest
from gift_train.clip.candidates import Candidates, all_candidates, answer_by_columns
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import class_features, zero_shot_scores
from gift_train.evaluation.evaluate import evaluate_readings, evaluate_spaces
from gift_train.evaluation.label_spaces import Columns, LabelSpaces
from gift_train.evaluation.spellings import spelled_differently, warn_of_spellings
from gift_train.methods.zero_shot import ZeroShot

ALL = ("known", "union-seen", "union-all")
NUM_IMAGES = 40  # of each dataset


def manifest(name, class_names, templates=("a {}.", "the {}."), **more):
    return TaskManifest(
        name=name, display_name=name.title(), class_names=tuple(class_names), templates=templates, data=None, counts={}, about="", **more
    )  # fmt: skip


PETS = manifest("pets", ["cat", "dog", "crane"])
BIRDS = manifest("birds", ["owl", "Crane", "wren", "duck"], templates=("a {}, a bird.",))
TOOLS = manifest("tools", ["saw", "crane", "crane"], repeated_class_names=("crane",))
ORDER = {one.name: one for one in (PETS, BIRDS, TOOLS)}
JOINED = JoinedClasses((PETS, BIRDS, TOOLS))
CPU = torch.device("cpu")


class Pictures(Dataset):
    """Random images with random labels."""

    def __init__(self, num_classes, seed):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (NUM_IMAGES, 3, 16, 16), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, num_classes, (NUM_IMAGES,), generator=generator)

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])

    def about(self, index):
        return (int(self.labels[index]),)


@pytest.fixture(scope="module")
def student():
    """A small CLIP with random weights; every letter is a token."""
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=64, layers=2, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=24, vocab_size=130, width=64, heads=2, layers=2)
    return Backbone(open_clip.CLIP(16, vision, text).eval(), letters)


def letters(texts, context_length=24):
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        codes = [128, *(ord(letter) % 128 for letter in text.lower()), 129]
        row[: len(codes)] = torch.tensor(codes)
    return tokens


@pytest.fixture(scope="module")
def tests():
    return {name: (one, Pictures(len(one.class_names), seed)) for seed, (name, one) in enumerate(ORDER.items())}


def evaluated(student, tests, asked=ALL, learned=(0,), **how):
    return evaluate_spaces(ZeroShot(ZeroShot.Config()), student, tests, LabelSpaces(asked, ORDER, learned), batch_size=16, **how)


@pytest.mark.parametrize(
    ("space", "dataset", "num_learned", "expected"),
    [
        ("known", "birds", 3, (1,)),
        ("union-all", "birds", 0, (0, 1, 2)),
        ("union-seen", "birds", 0, (1,)),
        ("union-seen", "birds", 1, (0, 1)),
        ("union-seen", "tools", 1, (0, 2)),
        ("union-seen", "pets", 2, (0, 1)),
        ("union-seen", "tools", 3, (0, 1, 2)),
    ],
)
def test_candidates_are_the_own_task_those_learned_or_all(space, dataset, num_learned, expected):
    assert LabelSpaces((space,), ORDER, (num_learned,)).candidates(space, dataset, num_learned) == expected


def test_what_is_asked_twice_is_answered_once():
    spaces = LabelSpaces(ALL, ORDER, (0, 1, 2, 3))
    assert spaces.all_candidates("pets") == [(0,), (0, 1), (0, 1, 2)]


def test_names_that_read_alike_in_several_tasks_are_one_class_and_within_a_task_labels_decide():
    columns = Columns(JOINED, CPU)  # cat dog crane | owl Crane wren duck | saw crane crane
    right = torch.stack([columns.are_right(torch.arange(10), torch.full((10,), true)) for true in range(10)])
    alike = {(2, 4), (2, 8), (2, 9), (4, 8), (4, 9)}
    expected = torch.eye(10, dtype=torch.bool)
    for one, other in alike:
        expected[one, other] = expected[other, one] = True
    assert torch.equal(right, expected)
    assert not right[8, 9], "two labels of one benchmark stay two, as they are where the task is known"


def test_another_spelling_is_another_class():
    columns = Columns(JoinedClasses((manifest("a", ["air plane"]), manifest("b", ["airplane"]), manifest("c", ["Air  Plane"]))), CPU)
    assert columns.are_right(torch.tensor([1, 2]), torch.tensor([0, 0])).tolist() == [False, True]


def test_the_highest_score_among_the_candidates_is_the_prediction():
    scores = torch.tensor([[0.0, 3, 1, 9, 2, 5, 4, 8, 7, 6]])
    columns = Columns(JOINED, CPU)
    found = {}
    for tasks in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        candidates = columns.candidates(tasks)
        found[tasks] = int(columns.predicted(scores[:, candidates.columns], candidates))
    assert found == {(0,): 1, (1,): 3, (2,): 7, (0, 2): 7, (0, 1, 2): 3}


def test_candidates_name_their_tasks_and_copy_no_score_of_neighbours():
    columns = Columns(JOINED, CPU)
    assert columns.candidates((1, 2)) == Candidates(("birds", "tools"), slice(3, 10))
    assert columns.candidates((1, 2)).columns == slice(3, 10)
    assert columns.candidates((0, 2)).columns.tolist() == [0, 1, 2, 7, 8, 9]
    assert all_candidates(JOINED) == columns.candidates((0, 1, 2))
    assert all_candidates(BIRDS) == Candidates(("birds",), slice(0, 4))
    scores = torch.randn(4, 10)
    answers = answer_by_columns(lambda _: scores)(torch.empty(4, 3, 16, 16))
    assert answers(columns.candidates((1,))).data_ptr() == scores[:, 3:].data_ptr()
    assert torch.equal(answers(columns.candidates((0, 2))), scores[:, [0, 1, 2, 7, 8, 9]])


class LastIfKnown(ZeroShot):
    """The last class of a task that is known, else the first class of all; notes what it is asked."""

    def __init__(self):
        super().__init__(ZeroShot.Config())
        self.batches = []

    def answers(self, student, classes):
        def answer(images):
            asked = []
            self.batches.append(asked)

            def scores(candidates):
                asked.append(candidates.datasets)
                number = len(torch.arange(len(classes.class_names))[candidates.columns])
                best = number - 1 if len(candidates.datasets) == 1 else 0
                return torch.eye(number)[best].expand(len(images), -1)

            return scores

        return {"": answer, "again": answer}


def test_a_method_may_answer_by_what_is_a_candidate(student, tests):
    method = LastIfKnown()
    found = evaluate_spaces(method, student, tests, LabelSpaces(ALL, ORDER, (1,)), batch_size=NUM_IMAGES)

    def share(dataset, *labels):
        return pytest.approx(100 * float(torch.isin(tests[dataset][1].labels, torch.tensor(labels)).float().mean()))

    assert found["known"][1][""] == {"pets": share("pets", 2), "birds": share("birds", 3), "tools": share("tools", 2)}
    assert found["union-seen"][1][""] == {"pets": share("pets", 2), "birds": share("birds"), "tools": share("tools")}
    assert found["union-all"][1][""] == {"pets": share("pets", 0), "birds": share("birds"), "tools": share("tools")}
    assert all(of_space[1]["again"] == of_space[1][""] for of_space in found.values())
    every = ("pets", "birds", "tools")
    asked = [[("pets",), every], [("birds",), ("pets", "birds"), every], [("tools",), ("pets", "tools"), every]]
    assert method.batches == [one for one in asked for _ in range(2)], "each batch once a reading, each set of candidates once"


def test_all_spaces_are_what_a_loop_over_images_says(student, tests):
    found = evaluated(student, tests, learned=(0, 1, 2, 3))
    texts = [class_features(student, part) for part in JOINED.parts]
    reads = [[(task, name.lower()) for name in part.class_names] for task, part in enumerate(JOINED.parts)]
    for place, (name, (_, pictures)) in enumerate(tests.items()):
        with torch.no_grad():
            features = student.encode_images(student.place_images(pictures.images))
        for space in ALL:
            for number in (0, 1, 2, 3):
                tasks = LabelSpaces((space,), ORDER).candidates(space, name, number)
                right = 0
                for feature, label in zip(features, pictures.labels.tolist(), strict=True):
                    best = max(((float(feature @ text), task, k) for task in tasks for k, text in enumerate(texts[task])))
                    _, task, k = best
                    is_same = (task, k) == (place, label) or (task != place and reads[task][k][1] == reads[place][label][1])
                    right += is_same
                assert found[space][number][""][name] == pytest.approx(100 * right / NUM_IMAGES), (space, number, name)


def test_known_is_the_same_whatever_else_is_asked(student, tests):
    alone = evaluate_readings(ZeroShot(ZeroShot.Config()), student, tests, batch_size=16)
    beside = evaluated(student, tests)["known"][0]
    assert alone == beside == evaluated(student, tests, asked=("known",))["known"][0]


def test_features_of_joined_classes_are_those_of_each_dataset_to_the_last_bit(student):
    joined = class_features(student, JOINED)
    assert torch.equal(joined, torch.cat([class_features(student, part) for part in JOINED.parts]))
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        scores = [zero_shot_scores(student, classes)(images) for classes in (JOINED, *JOINED.parts)]
    torch.testing.assert_close(scores[0], torch.cat(scores[1:], dim=1))


def test_images_and_texts_pass_the_towers_once_for_all_that_is_asked(student, tests, monkeypatch):
    passed = {"images": 0, "texts": 0}
    encode_images, encode_texts = Backbone.encode_images, Backbone.encode_texts

    def images(self, batch):
        passed["images"] += len(batch)
        return encode_images(self, batch)

    def texts(self, tokens):
        passed["texts"] += len(tokens)
        return encode_texts(self, tokens)

    monkeypatch.setattr(Backbone, "encode_images", images)
    monkeypatch.setattr(Backbone, "encode_texts", texts)
    evaluated(student, tests, learned=(0, 1, 2, 3))
    assert passed == {"images": 3 * NUM_IMAGES, "texts": sum(len(one.prompts) for one in ORDER.values())}


def test_known_alone_reads_no_classes_of_other_datasets(student, tests, monkeypatch):
    read = []
    monkeypatch.setattr(student, "tokenizer", lambda prompts, **about: read.extend(prompts) or letters(prompts, **about))
    evaluated(student, {"birds": tests["birds"]}, asked=("known",))
    assert read == list(BIRDS.prompts)


def test_noted_columns_are_of_the_joined_classes_and_a_right_one_is_the_own(student, tests):
    for asked in (("known",), ("union-all",), ("union-all", "known")):
        noted = {name: [] for name in tests}
        found = evaluated(student, tests, asked=asked, note=lambda dataset, columns, noted=noted: noted[dataset].append(columns))
        for name, start in zip(tests, JOINED.starts, strict=True):
            columns, labels = torch.cat(noted[name]), tests[name][1].labels
            assert 100 * float((columns == labels + start).float().mean()) == pytest.approx(found[asked[0]][0][""][name])


def test_an_order_of_one_task_has_one_label_space(student, tests):
    spaces = LabelSpaces(ALL, {"birds": BIRDS}, (0, 1))
    found = evaluate_spaces(ZeroShot(ZeroShot.Config()), student, {"birds": tests["birds"]}, spaces, batch_size=16)
    values = {found[space][number][""]["birds"] for space in ALL for number in (0, 1)}
    assert len(values) == 1


def test_a_dataset_beside_the_order_is_refused_by_name(student, tests):
    spaces = LabelSpaces(("union-all",), {"birds": BIRDS})
    with pytest.raises(ConfigError, match="pets is no task of the order, whose classes union-all joins"):
        evaluate_spaces(ZeroShot(ZeroShot.Config()), student, tests, spaces, batch_size=16)


@pytest.mark.parametrize(
    ("one", "other"),
    [("air plane", "airplane"), ("rose", "roses"), ("butterfly", "butterflies"), ("box", "boxes"), ("t-shirt", "t shirt"),
     ("sea_lion", "Sea Lion"), ("St. Bernard", "st bernard"), ("bus", "buses"), ("glass", "glasses")],
)  # fmt: skip
def test_spellings_of_what_may_be_one_class_are_found(one, other):
    order = {"a": manifest("a", [one, "fox"]), "b": manifest("b", ["owl", other])}
    (found,) = spelled_differently(order)
    assert sorted(found.values()) == [["a"], ["b"]]


@pytest.mark.parametrize("pair", [("Rose", "rose"), ("bass", "bas relief"), ("0", "1"), ("s", "es"), ("!", "?")])
def test_one_spelling_and_other_words_are_no_such_classes(pair):
    assert spelled_differently({"a": manifest("a", [pair[0]]), "b": manifest("b", [pair[1]])}) == []


def test_two_spellings_within_one_task_are_its_own_affair():
    assert spelled_differently({"a": manifest("a", ["rose", "roses"]), "b": manifest("b", ["owl"])}) == []


def test_spellings_are_told_by_name_where_labels_are_looked_for_among_several_tasks(caplog):
    order = {"a": manifest("a", ["air plane"]), "b": manifest("b", ["airplane"])}
    with caplog.at_level(logging.WARNING):
        warn_of_spellings(order, ("known",))
        assert not caplog.records
        warn_of_spellings(order, ("known", "union-seen"))
    assert "'air plane' (a) and 'airplane' (b)" in caplog.records[0].getMessage()


def test_shipped_orders_of_joined_classes_spell_them_alike():
    manifests = Manifests()
    found = {}
    for order in map(manifests.order, manifests.names("orders")):
        if order.label_space != "known":
            found |= {order.name: spelled_differently(manifests.tasks_of(order))}
    assert set(found) >= {"x-tail", "mini-xtail"}
    assert not any(found.values()), found
