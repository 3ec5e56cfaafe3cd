"""Every shipped recipe loads, and every row of every published table has its recipe."""

import json
from importlib import resources
from pathlib import Path

import pytest

from gift_train.recipes.recipe import benchmarks, load_recipe, recipe_names
from gift_train.report.paper_tables.definition import load_table, table_names

SHIPPED = [(benchmark, name) for benchmark in benchmarks() for name in recipe_names(benchmark)]
ROWS = [(table, row) for table in table_names() for row in load_table(table).rows if row.recipe is not None]


def plain(benchmark, name):
    return json.loads(json.dumps(load_recipe(name, benchmark).as_table()))


def differences(benchmark, name, other):
    """Dotted keys in which two recipes differ, beside their titles."""

    def flat(table, above=""):
        inner = [flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value} for key, value in table.items()]
        return {key: value for part in inner for key, value in part.items()}

    one, two = flat(plain(benchmark, name)), flat(plain(benchmark, other))
    return {key: one.get(key) for key in one.keys() | two.keys() if one.get(key) != two.get(key) and key != "title"}


@pytest.mark.parametrize(("benchmark", "name"), SHIPPED)
def test_every_shipped_recipe_loads(benchmark, name):
    recipe = load_recipe(name, benchmark)
    assert recipe.title
    assert recipe.steps is None or recipe.warmup_steps < recipe.steps


@pytest.mark.parametrize("benchmark", ["mini", "mtil"])
@pytest.mark.parametrize(("table", "row"), ROWS, ids=[f"{table}-{row.label}" for table, row in ROWS])
def test_every_row_of_every_published_table_has_its_recipe(table, row, benchmark):
    assert row.recipe in recipe_names(benchmark), f"table {table}, row {row.label!r}"


def test_no_two_recipes_of_a_benchmark_share_a_title():
    for benchmark in benchmarks():
        titles = [load_recipe(name, benchmark).title for name in recipe_names(benchmark)]
        assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("benchmark", ["mini", "mtil"])
@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("gift_without_awc", "gift", {"method_config.weight_consolidation": "plain-l2"}),
        ("gift_image_only", "gift_without_awc", {"method_config.distillation": "image-only"}),
        ("gift_text_only", "gift_without_awc", {"method_config.distillation": "text-only"}),
        ("gift_feature_distance", "gift_without_awc", {"method_config.distillation": "feature-distance"}),
        ("gift_teacher_initial", "gift_without_awc", {"method_config.teacher": "initial"}),
        ("gift_teacher_wise_0.2", "gift_without_awc", {"method_config.teacher": "wise", "method_config.teacher_alpha": 0.2}),
        ("gift_teacher_wise_0.5", "gift_without_awc", {"method_config.teacher": "wise", "method_config.teacher_alpha": 0.5}),
        ("gift_beta_0", "gift_without_awc", {"method_config.alignment_weight": 0.0}),
        ("gift_beta_0.5", "gift_without_awc", {"method_config.alignment_weight": 0.5}),
        ("gift_beta_1", "gift_without_awc", {"method_config.alignment_weight": 1.0}),
        ("gift_alignment_only", "gift_without_awc", {"method_config.distill_weight": 0.0}),
        ("gift_no_penalty", "gift", {"method_config.weight_consolidation": "none", "method_config.consolidation_weight": None}),
        ("gift_sigmoid", "gift", {"method_config.contrastive_loss": "sigmoid"}),
        ("gift_pretraining_only", "gift", {"replay.captions": "pretraining-only"}),
        ("gift_images_250", "gift", {"replay.num_images": 250}),
        ("gift_images_500", "gift", {"replay.num_images": 500}),
        ("gift_images_2000", "gift", {"replay.num_images": 2000}),
        ("gift_images_5000", "gift", {"replay.num_images": 5000}),
        ("gift_max_rank_1", "gift", {"replay.max_rank": 1}),
        ("gift_top_share_0.5", "gift", {"replay.top_share": 0.5}),
    ],
)
def test_an_ablation_changes_what_its_row_says_and_nothing_else(benchmark, name, base, expected):
    assert differences(benchmark, name, base) == expected


@pytest.mark.parametrize("benchmark", ["mini", "mtil"])
def test_the_doubled_recipe_doubles_every_term_but_the_task_loss(benchmark):
    gift, doubled = load_recipe("gift", benchmark).method_config, load_recipe("gift_doubled", benchmark).method_config
    for weight in ("distill_weight", "alignment_weight", "consolidation_weight"):
        assert getattr(doubled, weight) == 2 * getattr(gift, weight)


def test_headers_of_the_mtil_recipes_quote_the_numbers_of_the_tables():
    folder = Path(str(resources.files("gift_train"))) / "recipes/mtil"
    for table in ("distillation", "teacher", "alignment"):
        for row in (row for row in load_table(table).rows if row.published is not None):
            numbers = f"{row.published.transfer} / {row.published.avg} / {row.published.last}"
            assert numbers in (folder / f"{row.recipe}.toml").read_text(), row
