"""A method in a file of one's own is listed, checked, trained, recorded and read like ours; what is wrong with the file is one line."""

import hashlib
import json
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

from gift_shared.errors import ConfigError
from gift_train.methods import method_files, registry
from gift_train.methods.method_files import load_method_files, method_code
from gift_train.methods.registry import forget, method_class, method_names, registered
from gift_train.records.reading import reading_of_file

HALF = '''
"""Half of plain finetuning's loss."""

from dataclasses import dataclass

from gift_train.methods.base import LossTerms, Method
from gift_train.methods.registry import register


@register("half")
class Half(Method):
    summary = "Half the loss."

    @dataclass(frozen=True, kw_only=True)
    class Config:
        share: float

    def task_loss(self, student, batch):
        return LossTerms(half=self.config.share * super().task_loss(student, batch)["cross_entropy"])
'''
OWN_READING = (
    HALF
    + """
    def scores(self, student, classes):
        scores = super().scores(student, classes)
        return lambda images: -scores(images)
"""
)
RECIPE = 'base = "protocol"\ntitle = "Half"\nmethod = "half"\n[method_config]\nshare = 0.5\n'
QUICK = ("--set", "steps=3", "--set", "warmup_steps=1", "--set", "batch_size=6", "--set", "log_every=1")


def forget_all():
    """As another process would begin."""
    forget([name for name, chosen in registered().items() if not registry.is_own(chosen)])
    method_files._LOADED.clear()


@pytest.fixture(autouse=True)
def _no_method_outlives_its_test():
    yield
    forget_all()


@pytest.fixture
def half(tmp_path):
    (tmp_path / "half.toml").write_text(RECIPE)
    (tmp_path / "half.py").write_text(HALF)
    return tmp_path / "half.py"


def run_words(half, world, out):
    recipe = half.with_suffix(".toml")
    return ["run", *world.arguments, "--recipe", recipe, "--method-file", half, "--out", out, *QUICK]


def test_it_is_listed_checked_trained_recorded_and_goes_on_with_the_same_text_alone(gift_train, world, half, tmp_path):
    listed = gift_train("methods", "--method-file", half).out
    assert "half       Half the loss." in listed
    assert f"written in: {half}" in listed
    recipe, out = half.with_suffix(".toml"), tmp_path / "run"
    assert json.loads(gift_train("validate", recipe, "--method-file", half).out)["method_config"] == {"share": 0.5}
    assert gift_train(*run_words(half, world, out), "--stop-after", 1).code == 0
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert set(first["terms"]) == {"half"}
    digest = hashlib.sha256(half.read_bytes()).hexdigest()
    assert json.loads((out / "run.json").read_text())["method_code"] == {"path": str(half), "sha256": digest}
    half.write_text(HALF + "\n# another text\n")
    refused = gift_train(*run_words(half, world, out))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "the text of its method (--method-file, or an installed package)" in refused.err
    half.write_text(HALF)
    moved = half.rename(tmp_path / "moved.py")
    goes_on = gift_train("run", *world.arguments, "--recipe", recipe, "--method-file", moved, "--out", out, *QUICK)
    assert goes_on.code == 0, goes_on.err
    assert len(json.loads((out / "accuracy_matrix.json").read_text())["matrix"]) == 2


def test_weights_load_without_code_where_any_clip_is_read_so(gift_train, world, half, tmp_path):
    out = tmp_path / "run"
    assert gift_train(*run_words(half, world, out)).code == 0
    checkpoint = out / "checkpoints/task-02-stripes.safetensors"
    with_it = gift_train("evaluate", *world.arguments, "--checkpoint", checkpoint, "--method-file", half, "--json").out
    forget_all()
    assert gift_train("evaluate", *world.arguments, "--checkpoint", checkpoint, "--json").out == with_it
    assert gift_train("export", out, "--to", tmp_path / "exported").code == 0
    assert gift_train("report", out, "--out", tmp_path / "report").code == 0


def test_weights_that_the_method_reads_in_its_own_way_ask_for_its_file(gift_train, world, half, tmp_path, caplog):
    half.write_text(OWN_READING)
    out = tmp_path / "run"
    assert gift_train(*run_words(half, world, out)).code == 0
    checkpoint = out / "checkpoints/task-02-stripes.safetensors"
    assert reading_of_file(checkpoint).is_plain_clip is False
    forget_all()
    refused = gift_train("evaluate", *world.arguments, "--checkpoint", checkpoint)
    assert f"{checkpoint} is read by the method 'half' of {half}: give that file as --method-file." in refused.err
    assert "no plain CLIP holds them" in gift_train("export", out, "--to", tmp_path / "exported").err
    half.write_text(OWN_READING + "\n")
    read = gift_train("evaluate", *world.arguments, "--checkpoint", checkpoint, "--method-file", half, "--json")
    assert list(json.loads(read.out)["accuracy"].values()) == json.loads((out / "accuracy_matrix.json").read_text())["matrix"][-1]
    assert "has changed since its run" in caplog.text


def test_a_table_of_ones_own_knows_it(gift_train, world, half, tmp_path):
    table = tmp_path / "mine.toml"
    row = f'[[row]]\nlabel = "Half"\nrecipe = "{half.with_suffix(".toml")}"\n'
    table.write_text(f'title = "Mine"\nheading = "Method"\nsource = "none"\norders = {{ mini = "pair" }}\n{row}')
    words = ["table", table, "--world", "mini", "--runs", tmp_path / "runs", "--method-file", half]
    words += [word for word in world.arguments if not word.startswith("--order")]
    line = gift_train(*words, "--commands").out
    assert f"--method-file {half}" in line
    assert f"--out {tmp_path}/runs/pair/half-seed42" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def broken(:\n", "line 1: invalid syntax."),
        ("import re\nimport no_such_package\n", "line 2: ModuleNotFoundError: No module named 'no_such_package'."),
        ("x = 1\n", 'it registers no method. Put @register("name")'),
        (HALF.replace('"half"', '"gift"'), "There is a method 'gift' already."),
        (HALF.replace('"half"', '"half life"'), "A method's name is a word of letters, digits and underscores, found 'half life'."),
        (HALF.replace("class Half(Method)", "class Half"), "The method 'half' must be a subclass of gift_train.methods.base.Method"),
        (HALF.replace("    summary", "    about"), "The method 'half' needs a `summary`"),
        (HALF.replace("task_loss(self", "replay_terms(self"), "The method 'half' has replay_terms, but no replay_inputs"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_line(gift_train, half, text, told):
    half.write_text(text)
    outcome = gift_train("methods", "--method-file", half)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: --method-file {half}: ")
    assert told in outcome.err
    assert outcome.err.count("\n") == 1
    assert "half" not in method_names()


def test_files_that_are_none_are_told(gift_train, half, tmp_path):
    assert "there is no such file" in gift_train("methods", "--method-file", tmp_path / "none.py").err
    assert "expected a Python file" in gift_train("methods", "--method-file", half.with_suffix(".toml")).err


def test_a_file_that_changed_is_read_anew_in_the_same_process(half):
    load_method_files([half])
    half.write_text(HALF.replace("Half the loss.", "A half."))
    load_method_files([half])
    assert method_class("half").summary == "A half."
    assert method_code("half").sha256 == hashlib.sha256(half.read_bytes()).hexdigest()
    assert method_code("gift") is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that announces a method."""
    site = tmp_path / "site"
    info = site / "half_methods-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-methods\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nhalf = half_methods\n")
    (site / "half_methods.py").write_text(HALF)
    monkeypatch.syspath_prepend(site)
    registry._announced.cache_clear()
    yield site
    registry._announced.cache_clear()
    sys.modules.pop("half_methods", None)


def test_an_installed_package_announces_its_methods(gift_train, world, package, tmp_path):
    assert EntryPoint("half", "half_methods", registry.GROUP) in entry_points(group=registry.GROUP)
    assert f"written in: {package / 'half_methods.py'}" in gift_train("methods").out
    (tmp_path / "half.toml").write_text(RECIPE)
    out = tmp_path / "run"
    assert gift_train("run", *world.arguments, "--recipe", tmp_path / "half.toml", "--out", out, *QUICK, "--stop-after", 1).code == 0
    digest = hashlib.sha256((package / "half_methods.py").read_bytes()).hexdigest()
    assert json.loads((out / "run.json").read_text())["method_code"]["sha256"] == digest


def test_a_package_that_does_not_keep_its_word_is_named(package):
    (package / "half_methods.py").write_text("import no_such_package\n")
    with pytest.raises(ConfigError, match=r"package half-methods 1.2: its method 'half' does not load: ModuleNotFoundError: No module"):
        method_class("half")
    (package / "half_methods.py").write_text(HALF.replace('"half"', '"third"'))
    with pytest.raises(ConfigError, match="announces the method 'half', but half_methods registers none of that name"):
        method_class("half")
