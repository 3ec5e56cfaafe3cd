"""MoE-Adapter: sizes, gates, freezing, and the golden numbers of the published implementation (golden/parity)."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from gift_shared.errors import ConfigError, DataError
from gift_shared.manifests import JoinedClasses, TaskManifest
from gift_train.clip.model import Backbone
from gift_train.data.batches import TaskBatch
from gift_train.methods.base import TaskContext
from gift_train.methods.moe_adapter.adapters import Batch, Expert, Mixture, MixtureSettings, Route, balance
from gift_train.methods.moe_adapter.method import MoeAdapter, RoutedScores
from gift_train.methods.moe_adapter.task_selector import NO_TASK
from gift_train.parity.bounds import ON_CPU
from gift_train.parity.replay import check_fixture
from gift_train.recipes.recipe import load_recipe
from gift_train.recipes.typed_table import parse_table

GOLDEN = Path(__file__).parents[2] / "golden/parity/moe_adapter.safetensors"
MIXTURE = {"num_experts": 5, "top_k": 2, "bottleneck": 8, "expert_scale": 0.5, "dropout": 0.1, "gate_noise": 1.0}
WIDTH, NUM_CLASSES = 64, 4


def settings(**changes):
    return MixtureSettings(**(MIXTURE | changes))


def small_clip():
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=WIDTH, layers=2, head_width=32)
    text = open_clip.CLIPTextCfg(context_length=10, vocab_size=50, width=WIDTH, heads=2, layers=2)
    return Backbone(open_clip.CLIP(16, vision, text, quick_gelu=True).eval(), None)


def without_selector(**changes):
    table = {"mixture": MIXTURE, "routing": "batch", "balance_weight": 0.0} | changes
    selector = load_recipe("moe_adapter", "mini").as_table()["method_config"]["selector"] | {"features": "none"}
    return parse_table(MoeAdapter.Config, table | {"selector": selector}, "test")


def started(num_tasks=3, task_index=0, **changes):
    """A method on a small CLIP, its experts and routers no longer zero, in the midst of a task."""
    student, method = small_clip(), MoeAdapter(without_selector(**changes))
    method.prepare(student, num_tasks)
    with torch.no_grad():
        for name, parameter in student.network.named_parameters():
            if ".mixture." in name:
                parameter.normal_(std=0.3)
    method.begin_task(context(student, task_index), student)
    return method, student


def class_tokens():
    tokens = torch.randint(1, 40, (NUM_CLASSES, 6))
    tokens[:, 0], tokens[:, -1] = 48, 49
    return tokens


def context(student, task_index):
    return TaskContext(
        task_name=f"task-{task_index}",
        task_index=task_index,
        num_steps=1,
        label_smoothing=0.2,
        class_tokens=class_tokens(),
        reference_tokens=None,
        initial_weights=student.weights_copy(),
        replay_pass=None,
        task_images=lambda _: iter(()),
    )


def task_batch(batch_size=6):
    return TaskBatch(images=torch.randn(batch_size, 3, 16, 16), labels=torch.arange(batch_size) % NUM_CLASSES)


def test_published_numbers_are_met_exactly():
    (result,) = check_fixture(GOLDEN)
    assert result.agrees
    assert result.loss_difference <= ON_CPU.loss
    assert result.weight_difference <= ON_CPU.weight
    assert "expert counts equal" in result.note


@pytest.mark.parametrize(
    "name", ["moe/transformer.0.gate.1", "moe/visual.transformer.0.experts.1.up_proj.bias", "final/transformer.0.gate.1"]
)
def test_fixture_with_another_number_disagrees(tmp_path, name):
    tensors = load_file(GOLDEN)
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, tmp_path / GOLDEN.name)
    shutil.copy(GOLDEN.with_suffix(".json"), tmp_path)
    (result,) = check_fixture(tmp_path / GOLDEN.name)
    assert not result.agrees


def changed(folder, name, places, by):
    """The fixture with some entries of a tensor changed, replayed."""
    tensors = load_file(GOLDEN)
    tensors[name].view(-1)[places] += by
    save_file(tensors, folder / GOLDEN.name)
    shutil.copy(GOLDEN.with_suffix(".json"), folder)
    (result,) = check_fixture(folder / GOLDEN.name)
    return result


@pytest.mark.parametrize("kind", ["down_proj.bias", "up_proj.weight"])
def test_rounding_that_adamw_blows_up_in_a_weight_is_told_and_no_difference(tmp_path, kind):
    result = changed(tmp_path, f"final/transformer.0.experts.1.{kind}", slice(0, 1), 2.5e-5)
    assert result.agrees
    assert "worst weight 2.5e-05" in result.note


@pytest.mark.parametrize("name", ["experts.1.down_proj.bias", "experts.1.up_proj.weight", "gate.1"])
def test_a_wrong_tensor_is_a_difference_however_small_its_share(tmp_path, name):
    assert not changed(tmp_path, f"final/transformer.0.{name}", slice(None), 2.5e-5).agrees


def test_fixture_with_other_counts_disagrees(tmp_path):
    numbers = json.loads(GOLDEN.with_suffix(".json").read_text())
    numbers["expert_counts"]["transformer.0"][0] += 1
    (tmp_path / "moe_adapter.json").write_text(json.dumps(numbers))
    shutil.copy(GOLDEN, tmp_path)
    (result,) = check_fixture(tmp_path)
    assert not result.agrees
    assert "expert counts DIFFERENT" in result.note


def test_fixture_without_its_numbers_is_refused(tmp_path):
    shutil.copy(GOLDEN, tmp_path)
    (tmp_path / "moe_adapter.json").write_text("{}")
    with pytest.raises(DataError, match="lack or garble one of MoE-Adapter's: the key 'losses' is missing"):
        list(check_fixture(tmp_path))


def test_sizes_at_full_vit_b_16_are_the_papers():
    with torch.device("meta"):  # shapes only, so that no gigabyte is filled
        network = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"), quick_gelu=True)
        student = Backbone(network, None)
        recipe = load_recipe("moe_adapter", "mtil")
        method = MoeAdapter(parse_table(MoeAdapter.Config, without_alexnet(recipe), "test"))
        method.prepare(student, num_tasks=11)
    sizes = {"experts": 0, "gate": 0, "noise": 0}
    for name, parameter in method.trainable(student).items():
        sizes[name.split(".mixture.")[1].split(".")[0]] += parameter.numel()
    assert sizes["experts"] == 43_625_472
    assert sizes["gate"] + sizes["noise"] == 7_434_240
    assert len(method.mixtures) == 24


def without_alexnet(recipe):
    table = recipe.as_table()["method_config"]
    return table | {"selector": table["selector"] | {"features": "none"}}


def test_classes_of_several_datasets_are_scored_as_each_alone_by_the_router_of_the_image():
    method, student = started()
    method.num_learned = 2
    student.tokenizer = lambda texts, context_length: torch.tensor(
        [[48, *(1 + ord(letter) % 40 for letter in text[:6]), 49] for text in texts]
    )
    about = {"display_name": "", "templates": ("{}",), "data": None, "counts": {}, "about": ""}
    parts = [
        TaskManifest(name=name, class_names=tuple(names.split()), **about) for name, names in (("a", "crimson scarlet"), ("b", "magenta"))
    ]
    images, tasks = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, NO_TASK, 0])
    joined = RoutedScores(method, student, JoinedClasses(tuple(parts)))(images, tasks)
    alone = torch.cat([RoutedScores(method, student, part)(images, tasks) for part in parts], dim=1)
    torch.testing.assert_close(joined, alone)
    assert not torch.allclose(joined[0], RoutedScores(method, student, JoinedClasses(tuple(parts)))(images[:1], torch.tensor([1]))[0])


@torch.no_grad()  # with gradients, torch takes another path through attention, which rounds otherwise
def test_a_new_mixture_changes_nothing():
    student, method = small_clip(), MoeAdapter(without_selector())
    images, tokens = torch.randn(3, 3, 16, 16), class_tokens()
    method.prepare(student, num_tasks=2)
    # Outside a route: the same network, hooks and all, as plain CLIP.
    plain = student.encode_images(images), student.encode_texts(tokens)
    with method.route.through(1):
        assert torch.equal(student.encode_images(images), plain[0])
        assert torch.equal(student.encode_texts(tokens), plain[1])


@torch.no_grad()
def test_plain_clip_comes_back_outside_a_route():
    method, student = started()
    images = torch.randn(3, 3, 16, 16)
    plain = torch.nn.functional.normalize(small_clip().network.encode_image(images), dim=-1)  # open_clip's own pass, as with adapters
    with method.route.through(0):
        assert not torch.allclose(student.encode_images(images), plain, atol=1e-3)
    assert torch.equal(student.encode_images(images), plain)


def test_mixture_is_the_weighted_sum_over_the_top_experts():
    torch.manual_seed(1)
    route = Route()
    mixture = Mixture(WIDTH, 2, settings(), route, reads_images=True)
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden = torch.randn(4, 7, WIDTH)
    with route.through(1):
        outputs = mixture(hidden)
    for sequence, output in zip(hidden, outputs, strict=True):
        logits = sequence[0] @ mixture.gate[1]
        first, second = logits.argsort(descending=True)[:2].tolist()
        gates = torch.stack([logits[first], logits[second]]).softmax(0)
        experts = [mixture.experts[number](sequence) for number in (first, second)]
        torch.testing.assert_close(output, gates[0] * experts[0] + gates[1] * experts[1])


def test_expert_is_relu_between_two_layers_times_its_scale():
    expert = Expert(WIDTH, settings())
    torch.nn.init.normal_(expert.up_proj.weight)
    hidden = torch.randn(2, 3, WIDTH)
    inner = (hidden @ expert.down_proj.weight.T).clamp(min=0)
    torch.testing.assert_close(expert(hidden), 0.5 * inner @ expert.up_proj.weight.T)
    kept = torch.ones(2, 3, 8)
    kept[..., 4:] = 0.0
    torch.testing.assert_close(expert(hidden, 1.25 * kept), 0.5 * 1.25 * (inner * kept) @ expert.up_proj.weight.T)


def test_text_router_is_one_constant_for_all_class_names():
    """C2: position 0 is the start token and sees only itself, so every prompt gets the same experts and weights."""
    method, student = started()
    chosen = {}
    for name, mixture in method.mixtures.items():
        choose = mixture._choose
        mixture._choose = lambda query, name=name, choose=choose: chosen.setdefault(name, choose(query))
    with method.route.through(0):
        student.encode_texts(class_tokens())
        student.encode_images(torch.randn(NUM_CLASSES, 3, 16, 16))
    for name, (experts, weights) in chosen.items():
        is_constant = bool((experts == experts[0]).all()) and torch.allclose(weights, weights[:1].expand_as(weights), atol=1e-6)
        assert is_constant == (not name.startswith("visual.")), name


def test_gate_noise_is_drawn_in_training_only():
    method, student = started()
    images = torch.randn(8, 3, 16, 16)

    def encoded(training):
        with method.route.through(0, training=training):
            return student.encode_images(images)

    whole = Batch(num_images=8, num_texts=NUM_CLASSES)
    assert torch.equal(encoded(None), encoded(None))
    assert not torch.equal(encoded(whole), encoded(whole))


def test_dropout_is_drawn_in_training_only():
    method, student = started(mixture=MIXTURE | {"gate_noise": 0.0, "dropout": 0.5})
    images = torch.randn(8, 3, 16, 16)
    plain = student.encode_images(images)
    with method.route.through(0, training=Batch(num_images=8, num_texts=NUM_CLASSES)):
        first, second = student.encode_images(images), student.encode_images(images)
    assert not torch.equal(first, second)
    assert torch.equal(student.encode_images(images), plain)


def test_only_this_tasks_router_and_its_experts_get_gradients():
    method, student = started(task_index=1)
    with_gradient = set()
    sum(method.task_loss(student, task_batch()).values()).backward()
    for name, parameter in student.network.named_parameters():
        if parameter.grad is not None:
            assert ".mixture." in name, f"{name} is part of frozen CLIP"
            with_gradient.add(name.split(".mixture.")[1])
    assert {"gate.1", "noise.1"} <= with_gradient
    assert not with_gradient & {"gate.0", "gate.2", "noise.0", "noise.2"}
    for name, mixture in method.mixtures.items():
        used = [count > 0 for count in mixture.counts.tolist()]
        assert [expert.up_proj.weight.grad is not None for expert in mixture.experts] == used, name


def test_every_sequence_counts_two_experts():
    method, student = started()
    for _ in range(3):
        method.task_loss(student, task_batch(batch_size=6))
    for name, mixture in method.mixtures.items():
        assert int(mixture.counts.sum()) == 2 * 3 * (6 if name.startswith("visual.") else NUM_CLASSES)


def test_most_counted_experts_are_frozen_for_good():
    method, student = started()
    mixture = method.mixtures["transformer.1"]
    mixture.counts = torch.tensor([3, 9, 9, 0, 4])
    method.end_task(student)
    assert mixture.frozen == {1, 2}
    method.begin_task(context(student, 1), student)
    assert mixture.counts.tolist() == [0] * 5
    names = [
        name for name in method.trainable(student) if ".transformer.resblocks.1.mixture" not in name and "resblocks.1.mixture.exp" in name
    ]
    assert {name.split("experts.")[1][0] for name in names if name.startswith("transformer.")} == {"0", "3", "4"}
    mixture.counts = torch.tensor([0, 7, 0, 5, 1])
    method.end_task(student)
    assert mixture.frozen == {1, 2, 3}  # a frozen one picked again freezes fewer new ones


def test_frozen_experts_and_counts_travel_with_the_state():
    method, student = started()
    method.task_loss(student, task_batch())
    method.end_task(student)
    state = method.state_dict()
    other, _ = started()
    other.load_state_dict(state)
    assert other.num_learned == 1
    for name, mixture in method.mixtures.items():
        assert other.mixtures[name].frozen == mixture.frozen
        assert other.mixtures[name].counts.tolist() == mixture.counts.tolist()


def test_balance_loss_enters_only_by_its_weight():
    method, student = started(balance_weight=0.01)
    terms = method.task_loss(student, task_batch())
    assert set(terms) == {"cross_entropy", "balance"}
    terms["balance"].backward()
    assert student.parameters()["visual.transformer.resblocks.0.mixture.gate.0"].grad.abs().max() > 0
    method, student = started()
    assert set(method.task_loss(student, task_batch())) == {"cross_entropy"}


def test_balance_is_zero_where_all_experts_are_used_alike_and_grows_with_one_sidedness():
    chosen = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    weights = torch.full((4, 2), 0.5)
    noisy = torch.zeros(4, 4).scatter(1, chosen, 1.0)
    assert balance(noisy, noisy, None, chosen, weights) == pytest.approx(0.0)
    one_sided = torch.tensor([[0, 1]] * 4)
    noisy = torch.zeros(4, 4).scatter(1, one_sided, 1.0)
    # Importance and load are (2, 2, 0, 0) and (4, 4, 0, 0): variance 4/3 over mean^2 1, and the same again.
    assert balance(noisy, noisy, None, one_sided, weights) == pytest.approx(8 / 3)


def test_smooth_load_is_the_chance_of_being_chosen_again():
    clean = torch.tensor([[1.0, 0.5, -1.0]])
    noisy, deviation = torch.tensor([[1.2, 0.1, -0.9]]), torch.tensor([[0.5, 1.0, 2.0]])
    chosen, weights = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.4]])
    normal = torch.distributions.Normal(0.0, 1.0)
    # The rival of a chosen expert is the third, of the third expert the second.
    load = torch.stack([normal.cdf(torch.tensor(z)) for z in ((1.0 + 0.9) / 0.5, (0.5 + 0.9) / 1.0, (-1.0 - 0.1) / 2.0)])
    importance = torch.tensor([0.6, 0.4, 0.0])
    expected = sum(values.var() / values.mean() ** 2 for values in (importance, load))
    torch.testing.assert_close(balance(clean, noisy, deviation, chosen, weights), expected)


def test_a_tower_without_residual_blocks_is_refused():
    vision = open_clip.CLIPVisionCfg(image_size=32, layers=[1, 1, 1, 1], width=8, head_width=8)
    text = open_clip.CLIPTextCfg(context_length=10, vocab_size=50, width=WIDTH, heads=2, layers=1)
    student = Backbone(open_clip.CLIP(16, vision, text), None)
    with pytest.raises(ConfigError, match="image tower, ModifiedResNet, has none"):
        MoeAdapter(without_selector()).prepare(student, num_tasks=2)


def test_more_chosen_than_experts_is_refused():
    with pytest.raises(ConfigError, match="top_k must be from 1 to num_experts = 5, found 6"):
        settings(top_k=6)


def test_balance_is_reckoned_in_float32_whatever_autocast_hands_over():
    clean, noisy, deviation = (torch.rand(4, 3) for _ in range(3))
    chosen, weights = noisy.topk(2, dim=1).indices, torch.full((4, 2), 0.5)
    half = balance(clean.bfloat16(), noisy.bfloat16(), deviation, chosen, weights)  # on a GPU softmax answers in float32
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, balance(clean.bfloat16().float(), noisy.bfloat16().float(), deviation, chosen, weights))
