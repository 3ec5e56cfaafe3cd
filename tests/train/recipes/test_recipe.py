"""Recipes: what ships is valid, what is wrong is named."""

import tomllib
from pathlib import Path

import pytest

from gift_shared.errors import ConfigError
from gift_train.recipes.recipe import benchmarks, load_recipe, parse_recipe, recipe_names

SHIPPED = [(benchmark, name) for benchmark in benchmarks() for name in recipe_names(benchmark)]


@pytest.fixture
def recipe_file(tmp_path):
    """A function: TOML text -> path of a recipe on top of the mini protocol."""

    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text('base = "protocol"\ntitle = "Mine"\n' + text)
        return str(path)

    return write


@pytest.mark.parametrize(("benchmark", "name"), SHIPPED)
def test_shipped_recipe_is_valid(benchmark, name):
    assert load_recipe(name, benchmark).title


def test_mtil_protocol_is_the_published_one():
    recipe = load_recipe("gift", "mtil")
    assert (recipe.steps, recipe.warmup_steps, recipe.batch_size, recipe.replay_batch_size) == (1000, 100, 64, 64)
    assert [recipe.peak_rate(name) for name in ("aircraft", "mnist", "food")] == [5e-5, 5e-5, 1e-5]
    assert (recipe.label_smoothing, recipe.reseed, recipe.precision) == (0.2, "each-task", "fp32")
    assert (recipe.replay.num_images, recipe.replay.captions) == (1000, "all")
    config = recipe.method_config
    assert (config.distill_weight, config.alignment_weight, config.consolidation_weight, config.temperature) == (1.0, 0.25, 1.0, 2.0)


def test_a_recipe_changes_only_what_it_names():
    plain, doubled = load_recipe("gift", "mtil"), load_recipe("gift_doubled", "mtil")
    assert doubled.method_config.distill_weight == 2.0
    assert doubled.method_config.temperature == plain.method_config.temperature
    assert doubled.learning_rates == plain.learning_rates


def test_set_overrides_a_value_in_a_table():
    recipe = load_recipe("gift", "mini", ["method_config.teacher=initial", "steps=50", "learning_rates.mini_digits=1e-5"])
    assert (recipe.method_config.teacher, recipe.steps, recipe.peak_rate("mini_digits")) == ("initial", 50, 1e-5)


def test_epochs_are_counted_by_images_and_replace_steps(recipe_file):
    recipe = load_recipe(recipe_file('method = "finetune"\nepochs = 3\nbatch_size = 4'), "mini")
    assert (recipe.steps, [recipe.steps_of(num_images) for num_images in (4, 5, 9)]) == (None, [3, 6, 9])
    assert load_recipe("finetune", "cil").steps_of(5000) == 79  # CIFAR100 in 10 steps, batches of 64
    assert load_recipe("finetune", "cil", ["steps=50"]).epochs is None
    assert load_recipe("finetune", "mini", ["epochs=2"]).steps is None
    assert load_recipe("finetune", "mini").steps_of(1) == 150


def test_class_incremental_protocol_is_the_published_one():
    recipe = load_recipe("zscl", "cil")
    assert (recipe.epochs, recipe.warmup_steps, recipe.batch_size, recipe.label_smoothing, recipe.reseed) == (1, 30, 64, 0.2, "once")
    assert [recipe.peak_rate(name) for name in ("cifar100", "tinyimagenet", "imagenet100")] == [7.1e-6, 7.1e-6, 7e-6]
    config = recipe.method_config
    assert (config.distill_weight, config.l2_weight, config.average_every) == (5.0, 0.0, 10)
    adapters = load_recipe("moe_adapter", "cil")
    assert (adapters.method_config.routers, adapters.method_config.selector, adapters.method_config.mixture.num_experts) == (
        "shared",
        None,
        2,
    )
    assert (adapters.label_smoothing, adapters.peak_rate("cifar100")) == (0.0, 1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "gfit"', r"Unknown method 'gfit'. Did you mean 'gift'\?"),
        ("", r"the key 'method' is missing"),
        ('method = "finetune"\nlabel_smoothin = 0.2', r"Unknown key 'label_smoothin'. Did you mean 'label_smoothing'\?"),
        ('method = "finetune"\nsteps = 1.5', r"'steps' must be of type int, found 1.5"),
        ('method = "finetune"\nsteps = 10', r"warmup_steps must be from 0 to below steps = 10, found \d+"),
        ('method = "finetune"\nsteps = 20\nepochs = 1', r"give steps or epochs, one of the two"),
        ('method = "finetune"\nepochs = 0', r"epochs must be at least 1, found 0"),
        ('method = "finetune"\nepochs = 1\nwarmup_steps = -1', r"warmup_steps must be 0 or more, found -1"),
        ('method = "finetune"\nlabel_smoothing = 1.0', r"label_smoothing is a fraction"),
        ('method = "finetune"\nlearning_rate = nan', r"'learning_rate' must be a finite number, found nan"),
        ('method = "l2"\n[method_config]\nweight = inf', r"'weight' must be a finite number, found inf"),
        ('method = "finetune"\nlearning_rate = -1.0', r"learning rate 'learning_rate' must be positive"),
        ('method = "finetune"\n[optimizer]\nbeta1 = 1.5', r"beta1 is a fraction from 0 to below 1, found 1.5"),
        ('method = "finetune"\n[optimizer]\nweight_decay = -1', r"weight_decay must be 0 or more, found -1"),
        ('method = "finetune"\nprecision = "fp16"', r"Unknown value 'fp16'. Did you mean 'bf16'\?"),
        ('method = "finetune"\n[replay]\nnum_images = 3\ncaptions = "all"', r"replays no synthetic images; remove the \[replay\] table"),
        ('method = "l2"', r"\[method_config\]: the key 'weight' is missing"),
        ('method = "l2"\n[method_config]\nweigth = 1.0', r"Unknown key 'weigth'. Did you mean 'weight'\?"),
        ('method = "wise_ft"\n[method_config]\nalpha = 2.0\nanchor = "previous"', r"alpha is a fraction from 0 to 1"),
    ],
)
def test_mistake_in_a_recipe_is_named(recipe_file, text, message):
    path = recipe_file(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, "mini")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method_config.teacher_alpha=0.2"], "teacher_alpha.*goes with teacher = 'wise'"),
        (["method_config.teacher=wise"], "teacher_alpha.*goes with teacher = 'wise'"),
        (["method_config.teacher=wise", "method_config.teacher_alpha=1.5"], "fraction from 0 to 1, found 1.5"),
        (["method_config.distill_weight=0.0", "method_config.alignment_weight=0.0"], "distill_weight and alignment_weight are both 0"),
        (["method_config.weight_consolidation=none"], "consolidation_weight goes with"),
        (["method_config.weight_consolidation=plain-l2", "method_config.fisher_steps=3"], "fisher_steps"),
        (["method_config.temperature=0.0"], "temperature must be positive"),
        (["method_config.distillation=contrastiv"], r"Unknown value 'contrastiv'. Did you mean 'contrastive'\?"),
        (["method_config"], "should read key=value"),
        (["title.x=1"], "'title' is a value, not a table"),
    ],
)
def test_settings_of_gift_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("gift", "mini", overrides)


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [(method, "temperature=-1", "temperature must be positive, found -1") for method in ("zscl", "lwf", "lwf_vr", "icarl")]
    + [("icarl", f"{name}=0", f"{name} must be 1 or more images, found 0") for name in ("memory_size", "herding_candidates")],
)
def test_settings_of_a_method_that_cannot_be_are_refused(method, override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(method, "mini", [f"method_config.{override}"])


def test_gift_without_a_replay_table_is_refused():
    protocol = Path(load_recipe.__code__.co_filename).parent / "mini"
    tables = [tomllib.loads((protocol / name).read_text()) for name in ("protocol.toml", "gift.toml")]
    table = tables[0] | {key: value for key, value in tables[1].items() if key not in ("base", "replay")}
    with pytest.raises(ConfigError, match=r"method 'gift' needs a \[replay\] table"):
        parse_recipe(table, "mine")


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown recipe 'gift_double'. Did you mean 'gift_doubled'\?"):
        load_recipe("gift_double", "mtil")


def test_bases_that_form_a_circle_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b"')
    (tmp_path / "b.toml").write_text('base = "a"')
    with pytest.raises(ConfigError, match="form a circle"):
        load_recipe(str(tmp_path / "a.toml"), "mini")


def test_recipe_that_is_not_toml_is_told(recipe_file):
    path = recipe_file("steps = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_recipe(path, "mini")
