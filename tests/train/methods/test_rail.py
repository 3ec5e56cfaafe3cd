"""Ridge regression over tasks, and where it is asked beside zero-shot. The rest is held to published numbers (tests/golden/after_gift)."""

from dataclasses import replace

import open_clip
import pytest
import torch

from gift_shared.errors import ConfigError, NonFiniteError
from gift_shared.manifests import JoinedClasses, Part, TaskManifest
from gift_train.clip.candidates import Candidates, all_candidates
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import zero_shot_scores
from gift_train.data.batches import TaskBatch
from gift_train.methods.base import TaskContext
from gift_train.methods.rail import Rail

CONFIG = Rail.Config(hidden_width=40, ridge=0.1, regression_share=0.8)
# Of one colour each: to random weights all noise looks alike.
IMAGES = 2 * torch.randn(24, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16)


def manifest(name, *class_names, **more):
    return TaskManifest(
        name=name, display_name=name, class_names=class_names, templates=("a {}.",), data=None, counts={}, about="", **more
    )  # fmt: skip


PETS, BIRDS, TOOLS = manifest("pets", "cat", "dog", "crane"), manifest("birds", "owl", "wren"), manifest("tools", "saw", "Crane")


def letters(texts, context_length):
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        codes = [128, *(ord(letter) % 128 for letter in text.lower()), 129]
        row[: len(codes)] = torch.tensor(codes)
    return tokens


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=12, vocab_size=130, width=32, heads=2, layers=1)
    return Backbone(open_clip.CLIP(16, vision, text).eval(), letters)


def labels_of(task):
    return torch.arange(len(IMAGES)) % len(task.class_names)


def learn(method, student, task, *, batch=8, index=0):
    """The images as those of a task, by begin, steps and end as a run makes them."""
    context = TaskContext(
        task_name=task.name, task_index=index, num_steps=1, label_smoothing=0.0, class_tokens=student.tokenize(task.class_names),
        reference_tokens=None, initial_weights={}, replay_pass=None, task_images=lambda _: iter(()), classes=task,
    )  # fmt: skip
    torch.manual_seed(1)
    method.begin_task(context, student)
    for part in torch.arange(len(IMAGES)).split(batch):
        assert dict(method.task_loss(student, TaskBatch(images=IMAGES[part] + index, labels=labels_of(task)[part]))) == {}
    method.end_task(student)
    return method


@pytest.fixture(scope="module")
def learned(student):
    """Pets, then birds."""
    return learn(learn(Rail(CONFIG), student, PETS), student, BIRDS, index=1)


@torch.no_grad()
def answers(method, student, classes, *candidates):
    answer = method.answers(student, classes)[""](IMAGES)
    return [answer(one) for one in candidates]


def test_tasks_one_after_the_other_are_the_ridge_regression_of_all_their_images(student, learned):
    with torch.no_grad():
        features = torch.cat([learned.expanded(student.encode_images(IMAGES + index)) for index in (0, 1)]).double()
    targets = torch.zeros(2 * len(IMAGES), 5, dtype=torch.float64)
    targets[torch.arange(24), labels_of(PETS)] = 1
    targets[24 + torch.arange(24), 3 + labels_of(BIRDS)] = 1
    # The same least squares as a taller system: no normal equations.
    tall = torch.cat([features, 0.1**0.5 * torch.eye(40, dtype=torch.float64)])
    expected = torch.linalg.lstsq(tall, torch.cat([targets, torch.zeros(40, 5, dtype=torch.float64)])).solution
    torch.testing.assert_close(learned.weights.double(), expected, rtol=0, atol=1e-5)


def test_how_images_are_batched_changes_rounding_alone(student, learned):
    other = learn(learn(Rail(CONFIG), student, PETS, batch=5), student, BIRDS, batch=24, index=1)
    torch.testing.assert_close(other.weights, learned.weights, rtol=0, atol=1e-5)


def test_clip_stays_as_it_is_and_nothing_asks_for_a_gradient(student, learned):
    assert learned.trainable(student) == {}
    assert all(parameter.grad is None for parameter in student.parameters().values())


def test_before_anything_is_learned_it_is_zero_shot_to_the_last_bit(student):
    (found,) = answers(Rail(CONFIG), student, PETS, all_candidates(PETS))
    with torch.no_grad():
        assert torch.equal(found, zero_shot_scores(student, PETS)(IMAGES))


def test_the_regression_has_a_say_where_the_highest_candidate_is_learned_and_only_there(student):
    method = learn(Rail(CONFIG), student, PETS)
    classes = JoinedClasses((PETS, manifest("fish", "carp", "pike"), BIRDS))
    every = all_candidates(classes)
    birds, two = Candidates(("birds",), slice(5, 7)), Candidates(("pets", "birds"), torch.tensor([0, 1, 2, 5, 6]))
    among_all, among_birds, among_two = answers(method, student, classes, every, birds, two)
    with torch.no_grad():
        logits = zero_shot_scores(student, classes)(IMAGES)
        regression = torch.cat([method.expanded(student.encode_images(IMAGES)) @ method.weights, torch.zeros(24, 4)], dim=1)
    assert torch.equal(among_birds, logits[:, 5:])
    for found, columns in ((among_all, list(range(7))), (among_two, [0, 1, 2, 5, 6])):
        is_learned = torch.tensor([column < 3 for column in columns])
        own = logits[:, columns]
        meets = is_learned[own.argmax(dim=1)]
        assert 0 < int(meets.sum()) < 24, "both kinds of image"
        expected = own.softmax(dim=1)
        expected[meets] = 0.2 * expected[meets] + 0.8 * regression[:, columns][meets]
        torch.testing.assert_close(found, expected)


def test_a_known_task_that_is_learned_is_told_by_both(student, learned):
    (found,) = answers(learned, student, BIRDS, all_candidates(BIRDS))
    with torch.no_grad():
        expected = 0.2 * zero_shot_scores(student, BIRDS)(IMAGES).softmax(dim=1)
        expected += 0.8 * (learned.expanded(student.encode_images(IMAGES)) @ learned.weights)[:, 3:]
    torch.testing.assert_close(found, expected)


def test_a_class_of_two_tasks_is_learned_if_one_of_the_candidates_learned_it(student, learned):
    """`Crane` of tools is not learned, `crane` of pets is; the two tie, and which of them is first must not matter."""
    for parts in ((PETS, TOOLS), (TOOLS, PETS)):
        classes = JoinedClasses(parts)
        start = {part.name: begin for part, begin in zip(parts, classes.starts, strict=True)}
        pets, tools = (slice(start[part.name], start[part.name] + len(part.class_names)) for part in (PETS, TOOLS))
        among_all, among_tools = answers(learned, student, classes, all_candidates(classes), Candidates(("tools",), tools))
        with torch.no_grad():
            logits = zero_shot_scores(student, classes)(IMAGES)
        torch.testing.assert_close(among_tools, logits[:, tools])
        best = logits.argmax(dim=1)
        is_saw = best == start["tools"]
        cranes = [start["pets"] + 2, start["tools"] + 1]
        meets_crane = torch.isin(best, torch.tensor(cranes))
        assert meets_crane.any()
        assert not torch.isclose(among_all[~is_saw], logits[~is_saw].softmax(dim=1)).all(dim=1).any()
        assert torch.allclose(among_all[is_saw], logits[is_saw].softmax(dim=1))
        crane = among_all[meets_crane][:, start["pets"] + 2] - among_all[meets_crane][:, start["tools"] + 1]
        with torch.no_grad():
            regression = (learned.expanded(student.encode_images(IMAGES)) @ learned.weights)[meets_crane, 2]
        torch.testing.assert_close(crane, 0.8 * regression)
        assert among_all[:, pets].shape == (24, 3)


def test_steps_of_a_dataset_are_its_classes_wherever_they_are_asked_for(student):
    whole = manifest("letters", "a", "b", "c", "d")
    steps = [replace(whole, name=f"letters-{n}", class_names=names, part=Part(whole, labels)) for n, (names, labels) in
             enumerate(((("d", "b"), (3, 1)), (("a", "c"), (0, 2))))]  # fmt: skip
    method = learn(learn(Rail(CONFIG), student, steps[0]), student, steps[1], index=1)
    (of_whole,) = answers(method, student, whole, all_candidates(whole))
    (of_steps,) = answers(method, student, JoinedClasses(tuple(steps)), all_candidates(JoinedClasses(tuple(steps))))
    torch.testing.assert_close(of_whole[:, [3, 1, 0, 2]], of_steps)


def test_what_it_kept_answers_and_goes_on_as_it_would_have(student, learned):
    first = learn(Rail(CONFIG), student, PETS)
    restored = Rail(CONFIG)
    restored.load_state_dict(first.state_dict())
    restored.load_state_dict(first.state_dict())  # as a run does when a task begins
    assert restored.columns == first.columns == {("pets", label): label for label in range(3)}
    learn(restored, student, BIRDS, index=1)
    assert torch.equal(restored.weights, learned.weights)
    again = Rail(CONFIG)
    again.load_state_dict(learned.state_dict())
    assert again.columns == learned.columns
    assert torch.equal(*(answers(one, student, PETS, all_candidates(PETS))[0] for one in (again, learned)))


def test_features_that_are_not_finite_end_the_task(student):
    method = Rail(CONFIG)
    broken = Backbone(student.network, letters)
    broken.encode_images = lambda images: torch.full((len(images), 16), torch.nan)
    with pytest.raises(NonFiniteError, match="pets: the regression has no solution"):
        learn(method, broken, PETS)


def test_tf32_is_refused_before_weights_are_read(student):
    with pytest.raises(ConfigError, match="set precision to fp32 or bf16"):
        Rail(CONFIG).check_model(Backbone(student.network, letters, "tf32"))
    Rail(CONFIG).check_model(student)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("hidden_width", 0, "1 or more random features"), ("ridge", 0.0, "above 0"), ("regression_share", 1.1, "a fraction from 0 to 1")],
)
def test_settings_that_mean_nothing_are_told(key, value, told):
    with pytest.raises(ConfigError, match=told):
        replace(CONFIG, **{key: value})
