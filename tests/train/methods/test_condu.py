"""ConDU: what is unified, who is asked and what they answer. Its training and the whole of it are held to published numbers (golden)."""

import dataclasses
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from gift_shared.errors import ConfigError
from gift_shared.manifests import JoinedClasses, TaskManifest
from gift_train.clip.candidates import Candidates, all_candidates
from gift_train.clip.model import Backbone
from gift_train.clip.zero_shot import class_features, mean_text_features
from gift_train.data.batches import TaskBatch
from gift_train.distributed import SINGLE
from gift_train.methods.base import TaskContext
from gift_train.methods.condu.experts import class_prototypes, nearest_tasks
from gift_train.methods.condu.merging import Unified, packed, unify, unpacked
from gift_train.methods.condu.method import Condu
from gift_train.parity.replay import check_fixture

GOLDEN = Path(__file__).parents[2] / "golden/after_gift/condu.safetensors"
NAMES = ("cats", "dogs", "birds")


def of_two(*entries):
    """One parameter's deltas of two tasks."""
    return torch.tensor(entries)


@pytest.fixture(scope="module")
def by_hand():
    """Means 1.5, -0.5, -0.5, 1 of the first parameter: signs +, -, -, +; 0 and 1 of the second: -, +."""
    deltas = {"a": of_two([1.0, -2.0, 0.0, 3.0], [2.0, 1.0, -1.0, -1.0]), "b": of_two([4.0, 1.0], [-4.0, 1.0])}
    return unify(deltas.items())


def test_the_unified_delta_is_the_largest_of_those_that_agree_with_the_mean(by_hand):
    assert by_hand.delta["a"].tolist() == [2.0, -2.0, -1.0, 3.0]
    assert by_hand.delta["b"].tolist() == [-4.0, 1.0]  # a mean of 0 counts as negative


def test_masks_are_where_a_task_agrees(by_hand):
    assert [unpacked(row, 4).int().tolist() for row in by_hand.masks["a"]] == [[1, 1, 0, 1], [1, 0, 1, 0]]
    assert [unpacked(row, 2).int().tolist() for row in by_hand.masks["b"]] == [[0, 1], [1, 1]]


def test_rescalers_are_ratios_of_sums_over_parameters_of_means(by_hand):
    expected = [(6 / 4 + 5 / 2) / (7 / 4 + 1 / 2), (5 / 4 + 5 / 2) / (3 / 4 + 5 / 2)]
    assert by_hand.rescalers.tolist() == pytest.approx(expected)


def test_what_is_left_of_a_task_is_its_part_of_the_unified_delta_rescaled(by_hand):
    assert by_hand.of_task("a", 1).tolist() == pytest.approx([2 * 15 / 13, 0.0, -15 / 13, 0.0])


def test_the_only_task_gets_its_own_delta_back():
    delta = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    unified = unify([("w", delta)])
    assert torch.equal(unified.of_task("w", 0), delta[0])


def test_a_task_that_changed_nothing_has_nothing_and_no_nan():
    unified = unify([("w", of_two([0.0, 0.0], [1.0, -2.0]))])
    assert unified.rescalers.tolist() == [1.0, 1.0]
    assert unified.of_task("w", 0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("num_entries", [1, 8, 9, 23])
def test_what_is_packed_is_unpacked(num_entries):
    mask = torch.rand(2, num_entries, generator=torch.Generator().manual_seed(num_entries)) > 0.5
    assert packed(mask).shape == (2, -(-num_entries // 8))
    assert torch.equal(unpacked(packed(mask), num_entries), mask)


def test_the_first_entry_is_the_lowest_bit():
    assert packed(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist() == [9, 1]


def test_the_nearest_tasks_are_those_with_the_most_similar_class():
    prototypes = [torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.6, 0.8]])]
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert nearest_tasks(features, prototypes, 2).tolist() == [[0, 2], [1, 2]]
    assert nearest_tasks(features, prototypes, 9).shape == (2, 3)
    assert nearest_tasks(features, prototypes, 0).shape == (2, 0)


def tokenizer(texts, context_length):
    """A text as its bytes, in the places between the ends."""
    rows = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        tokens = [48, *(1 + byte % 40 for byte in text.encode()), 49][:context_length]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def small_clip():
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=64, layers=1, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=12, vocab_size=50, width=64, heads=2, layers=1)
    return Backbone(open_clip.CLIP(16, vision, text, quick_gelu=True).eval(), tokenizer)


def pictures(count, seed):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def classes_of(name, count=3):
    return TaskManifest(
        name=name,
        display_name=name,
        class_names=tuple(f"{name} {number}" for number in range(count)),
        templates=("a {}", "{}!"),
        data=None,
        counts={},
        about="",
    )


def learn(method, student, index):
    """A task of the method, whose training is replaced by moving all weights at random."""
    labels = torch.arange(5) % 3
    context = TaskContext(
        task_name=NAMES[index],
        task_index=index,
        num_steps=1,
        label_smoothing=0.0,
        class_tokens=torch.zeros(3, 4, dtype=torch.long),
        reference_tokens=None,
        initial_weights=small_clip().weights_copy(),
        replay_pass=None,
        task_images=lambda _: iter([TaskBatch(images=pictures(5, index), labels=labels)]),
        classes=classes_of(NAMES[index]),
    )
    method.begin_task(context, student)
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for weight in student.weights().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    method.end_task(student)


@pytest.fixture(scope="module")
def learned():
    """Method and student after two tasks."""
    method, student = Condu(Condu.Config(num_nearest=1)), small_clip()
    for index in range(2):
        learn(method, student, index)
    return method, student


def expert_of(method, number):
    """The network of a task, put together in the plain way."""
    network = small_clip()
    network.load_weights({name: weight + method.unified.of_task(name, number) for name, weight in small_clip().weights().items()})
    return network


@torch.no_grad()
def plain_scores(network, images, classes):
    return network.scale * network.encode_images(images) @ class_features(network, classes).T


def counted(monkeypatch):
    """How many images every network that is asked sees: [(network, images)]."""
    seen, encode = [], Backbone.encode_images

    def noting(self, images):
        seen.append((id(self.network), len(images)))
        return encode(self, images)

    monkeypatch.setattr(Backbone, "encode_images", noting)
    return seen


def test_each_task_begins_from_the_initial_weights_and_hands_them_on(learned):
    _, student = learned
    assert all(torch.equal(weight, student.weights()[name]) for name, weight in small_clip().weights().items())


def test_a_known_task_is_answered_by_its_expert_in_one_pass(learned, monkeypatch):
    method, student = learned
    images, classes = pictures(4, 9), classes_of("dogs")
    expected = plain_scores(expert_of(method, 1), images, classes)
    seen = counted(monkeypatch)
    scores = method.answers(student, classes)[""](images)(all_candidates(classes))
    assert torch.allclose(scores, expected, atol=1e-5)
    assert [number for _, number in seen] == [4]


def test_a_task_that_was_not_learned_is_answered_by_the_initial_model_and_the_nearest_experts(learned):
    method, student = learned
    images, classes = torch.cat([pictures(5, 0), pictures(5, 1)]), classes_of("birds")
    nearest = nearest_tasks(small_clip().encode_images(images), list(method.prototypes.values()), 1).flatten()
    assert set(nearest.tolist()) == {0, 1}
    by_expert = torch.stack([plain_scores(expert_of(method, number), images, classes) for number in range(2)])
    expected = (plain_scores(small_clip(), images, classes) + by_expert[nearest, torch.arange(10)]) / 2
    scores = method.answers(student, classes)[""](images)(all_candidates(classes))
    assert torch.allclose(scores, expected, atol=1e-5)


def test_among_the_classes_of_several_tasks_none_is_known_and_each_network_sees_an_image_once(learned, monkeypatch):
    method, student = learned
    parts = tuple(classes_of(name) for name in NAMES)
    images, joined = torch.cat([pictures(5, 0), pictures(5, 1)]), JoinedClasses(parts)
    answer = method.answers(student, joined)[""]
    seen = counted(monkeypatch)
    answers = answer(images)
    assert seen == []
    known = answers(Candidates(("dogs",), slice(3, 6)))
    two = answers(Candidates(("cats", "birds"), torch.tensor([0, 1, 2, 6, 7, 8])))
    every = answers(all_candidates(joined))
    assert torch.equal(two, every[:, [0, 1, 2, 6, 7, 8]])
    assert known.shape == (10, 3)
    assert [number for _, number in seen][:2] == [10, 10]  # the dogs' expert and the initial model
    assert sum(number for _, number in seen[2:]) < 10  # the cats' expert: images near to its task
    assert torch.allclose(every[:, 6:], method.answers(student, parts[2])[""](images)(all_candidates(parts[2])), atol=1e-5)


def test_before_the_first_task_it_is_the_initial_model():
    method, student, classes = Condu(Condu.Config(num_nearest=4)), small_clip(), classes_of("cats")
    scores = method.answers(student, classes)[""](pictures(2, 0))(all_candidates(classes))
    assert torch.equal(scores, plain_scores(student, pictures(2, 0), classes))
    assert method.state_dict() == {}


def test_prototypes_are_means_of_images_and_texts_and_of_texts_alone_without_images():
    student, classes = small_clip(), classes_of("cats")
    batches = [TaskBatch(images=pictures(3, 1), labels=torch.tensor([0, 0, 2])), TaskBatch(images=pictures(1, 2), labels=torch.tensor([2]))]
    found = class_prototypes(student, batches, classes, SINGLE)
    features, more = student.encode_images(pictures(3, 1)).detach(), student.encode_images(pictures(1, 2)).detach()
    means = torch.stack([features[:2].mean(dim=0), torch.zeros(16), (features[2] + more[0]) / 2])
    expected = torch.nn.functional.normalize(means + mean_text_features(student, classes), dim=1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_state_gives_the_method_back_to_the_bit(learned):
    method, student = learned
    again = Condu(method.config)
    again.load_state_dict(method.state_dict())
    assert list(again.prototypes) == ["cats", "dogs"]
    assert again.state_dict().keys() == method.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in method.state_dict().items())
    for one in (method, again):
        learn(one, student, 2)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in method.state_dict().items())


def test_a_bit_per_weight_and_task_is_kept_beside_one_delta(learned):
    unified = learned[0].unified
    num_weights = sum(delta.numel() for delta in unified.delta.values())
    mask_bytes = sum(bits[0].numel() for bits in unified.masks.values())
    assert num_weights / 8 <= mask_bytes <= num_weights / 8 + len(unified.masks)


def test_a_negative_number_of_experts_is_refused():
    with pytest.raises(ConfigError, match="num_nearest must be 0 or more, found -1"):
        Condu.Config(num_nearest=-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rescalers", "prototypes/captions", "scores/known/mirrored", "scores/nearest_2", "mask_probe"])
def test_a_fixture_with_another_number_disagrees(tmp_path, name):
    (tmp_path / "parity").mkdir()
    (tmp_path / "after_gift").mkdir()
    shutil.copy(GOLDEN.parents[1] / "parity/fixture.safetensors", tmp_path / "parity")
    shutil.copy(GOLDEN.with_suffix(".json"), tmp_path / "after_gift")
    tensors = load_file(GOLDEN)
    tensors[name].view(-1)[: max(1, tensors[name].numel() // 100)] += 1 if name == "mask_probe" else 0.1
    save_file(tensors, tmp_path / "after_gift" / GOLDEN.name)
    (result,) = check_fixture(tmp_path / "after_gift" / GOLDEN.name)
    assert not result.agrees


def test_unified_deltas_come_back_from_their_state(by_hand):
    again = Unified.from_state(by_hand.state_dict() | {"prototypes/000/cats": torch.ones(1)})
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(by_hand).keys()
    assert torch.equal(again.of_task("b", 1), by_hand.of_task("b", 1))
