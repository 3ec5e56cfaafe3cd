"""--precision and --compile reach the towers, and what they change is written down."""

import json
from functools import partial

import pytest
import torch

FEW_UPDATES = ("--set", "method_config.selector.no_task_updates=20", "--set", "method_config.selector.task_updates=20")


def run_json(folder):
    return json.loads((folder / "run.json").read_text())


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_in_bf16_trains_and_its_precision_makes_it_another_run(quick_run, tmp_path):
    assert quick_run("gift", tmp_path / "fp32").code == 0
    assert quick_run("gift", tmp_path / "bf16", "--precision", "bf16").code == 0
    assert "bf16" in json.dumps(run_json(tmp_path / "bf16"))
    plain, low = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert low != plain
    assert low == pytest.approx(plain, rel=0.05)
    told = quick_run("gift", tmp_path / "bf16")
    assert told.code == 2
    assert "precision" in told.err


def test_an_unknown_precision_is_told(quick_run, gift_train, tmp_path):
    told = quick_run("gift", tmp_path / "run", "--precision", "fp8")
    assert told.code == 2
    assert "'precision': Unknown value 'fp8'" in told.err
    told = gift_train("evaluate", "--precision", "bf61", "--device", "cpu")
    assert told.code == 2
    assert "Unknown precision 'bf61'. Did you mean 'bf16'?" in told.err


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run_up_to_rounding(quick_run, tmp_path):
    assert quick_run("gift", tmp_path / "plain").code == 0
    assert quick_run("gift", tmp_path / "compiled", "--compile").code == 0
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gift", "moe_adapter"])
def test_a_run_with_compiled_losses_is_the_same_run_and_goes_on_without(method, quick_run, world, caplog, tmp_path):
    out, plain = tmp_path / "compiled", tmp_path / "plain"
    more = () if method == "gift" else (world.shards, *FEW_UPDATES)
    assert quick_run(method, plain, *more).code == 0
    told = quick_run(method, out, *more, "--compile-step", "--stop-after", "1")
    assert told.code == 0
    assert ("--compile-step: the task loss is not compiled whole" in caplog.text) == (method == "moe_adapter")
    assert run_json(out)["options"]["compiles_step"] is True
    assert quick_run(method, out, *more).code == 0
    assert losses(out) == pytest.approx(losses(plain), rel=1e-3)


@pytest.mark.parametrize("flag", ["--compile", "--compile-step"])
def test_a_machine_without_a_compiler_is_told_before_work(flag, quick_run, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    told = quick_run("gift", tmp_path / "run", flag)
    assert told.code == 2
    assert "--compile does not work here (RuntimeError: No working C++ compiler found). It needs" in told.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
