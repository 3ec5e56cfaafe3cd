"""safetensors and what stands beside them: checkpoints, parity fixtures, model folders."""

import gzip
import json
import shutil
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from hostile import VALUES, damages, fuzz, reads_or_tells, table_changes
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gift_generate.rendering.loading import judge
from gift_generate.rendering.model_folder import check_model_folder, fingerprint, read_index
from gift_shared.errors import ConfigError, DataError
from gift_train.clip.load import load_backbone
from gift_train.clip.model import Backbone
from gift_train.methods.averaging import WeightAverage
from gift_train.methods.registry import method_class
from gift_train.parity.replay import check_fixture
from gift_train.recipes.recipe import OptimizerSettings
from gift_train.recipes.typed_table import parse_table
from gift_train.records import checkpoint
from gift_train.records.checkpoint import METADATA_KEY, ResumePoint
from gift_train.training.loop import Schedule, Training, build_optimizer

PARITY = Path(__file__).parents[1] / "golden/parity"
PLACE = ResumePoint(task_index=0, task_name="colours", next_step=1, metrics_bytes=0, train_seconds=1.0)
VISION = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 514, "width": 64, "heads": 1, "layers": 1}


def training(method_name="zscl"):
    """A training after one update, of a method that keeps much of its own inside a task."""
    torch.manual_seed(3)
    student = Backbone(open_clip.CLIP(16, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT)), None)
    chosen = method_class(method_name)
    settings = {"distill_weight": 1.0, "temperature": 2.0}
    own = {"l2_weight": 1.0, "average_every": 1}
    if method_name == "icarl":
        own = {"teacher": "last", "memory_size": 4, "herding_candidates": 4, "quota": "even"}
    method = chosen(parse_table(chosen.Config, settings | own, "test"))
    if method_name == "zscl":
        method.average = WeightAverage(1, student.flat_weights(), student.flat_weights().copy())
    parameters = student.parameters()
    optimizer = build_optimizer(parameters, OptimizerSettings(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule = Schedule(peak=1e-3, warmup_steps=1, total_steps=4)
    return Training(method=method, student=student, parameters=parameters, optimizer=optimizer, schedule=schedule)


@pytest.fixture(scope="module")
def this(tmp_path_factory):
    """(folder, training, path of its saved progress, path of its saved task)."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), training()
    checkpoint.save_progress(folder, PLACE, made)
    checkpoint.save_task(folder, PLACE, made.student, made.method.state_dict())
    return folder, made, next((folder / "progress").iterdir()), checkpoint.task_file(folder, 0, "colours")


def use(this):
    """Go on inside the task, and go on after it; then make a step, which finds tensors that do not fit."""
    folder, made, progress, task = this
    reads_or_tells(lambda: checkpoint.load_progress(folder, 0, made), progress)
    made.optimizer.step()
    beside = task.with_suffix(".state.safetensors")
    reads_or_tells(lambda: checkpoint.load_task(task, made.student, made.method), task, beside)
    reads_or_tells(lambda: checkpoint.load_weights_file(task, made.student), task)


@pytest.fixture
def whole(this):
    """The files as they were saved; put back after each test."""
    files = {path: path.read_bytes() for path in (this[2], this[3], this[3].with_suffix(".state.safetensors"))}
    yield files
    for path, content in files.items():
        path.write_bytes(content)


@fuzz(60)
@given(which=st.integers(0, 2), damage=damages())
def test_a_damaged_checkpoint_is_told(this, whole, which, damage):
    for number, (path, content) in enumerate(whole.items()):
        path.write_bytes(damage(content) if number == which else content)
    use(this)


@fuzz(60)
@given(which=st.integers(0, 2), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_tensor_is_noticed(this, whole, caplog, which, place, bit):
    for path, content in whole.items():
        path.write_bytes(content)
    path, content = list(whole.items())[which]
    start = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    damaged[start + int(place * (len(content) - start))] ^= 1 << bit
    path.write_bytes(damaged)
    folder, made, progress, task = this
    if path == progress:
        caplog.clear()
        assert checkpoint.load_progress(folder, 0, made) is None
        assert "is damaged: its bytes are not those that were written (CRC-32)" in caplog.text
    else:
        with pytest.raises(DataError, match=r"is damaged: its bytes are not those that were written \(CRC-32\)"):
            checkpoint.load_task(task, made.student, made.method)


def changed(tensors, steps):
    """Some tensors gone, renamed, of another shape or type."""
    names = sorted(tensors)
    for kind, number, name in steps:
        key = names[number % len(names)]
        if key not in tensors:
            continue
        tensor = tensors.pop(key)
        if kind == "rename":
            tensors[name.replace("\0", "") or "x"] = tensor
        elif kind == "shape":
            tensors[key] = torch.zeros(3, 2)
        elif kind == "scalar":
            tensors[key] = torch.zeros(())
        elif kind == "type":
            tensors[key] = tensor.to(torch.int64)
        elif kind == "empty":
            tensors[key] = torch.zeros(0)
        elif kind == "huge":
            tensors[key] = torch.full_like(tensor, 100) * 10**9
    return tensors


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "rename", "shape", "scalar", "type", "empty", "huge"]),
        st.one_of(st.integers(0, 500), st.integers(-12, -1)),
        st.sampled_from(["method/x", "optimizer/x", "optimizer/0/x", "optimizer/99999/step", "optimizer/-1/step", "random/cuda/9", "a/b"]),
    ),
    min_size=1,
    max_size=3,
)


@fuzz(60)
@given(which=st.integers(0, 2), steps=STEPS, place=st.one_of(st.none(), table_changes()))
def test_a_checkpoint_of_something_else_is_told(this, whole, which, steps, place):
    for path, content in whole.items():
        path.write_bytes(content)
    path = list(whole)[which]
    table = {"task_index": 0, "task_name": "colours", "next_step": 1, "metrics_bytes": 0, "train_seconds": 1.0}
    metadata = {METADATA_KEY: json.dumps(table if place is None else place(table))}
    tensors = changed(load_file(path), steps)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    use(this)


@pytest.fixture(scope="module")
def fixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    for name in ("fixture.safetensors", "fixture.json"):
        shutil.copy(PARITY / name, folder / name)
    return folder


def numbers_of_one():
    """The numbers of the fixture with its first variant alone: the others would take seconds and are read alike."""
    table = json.loads((PARITY / "fixture.json").read_text())
    return table | {"variants": {"finetune": table["variants"]["finetune"]}}


@fuzz(12)
@given(damage=damages(), is_json=st.booleans())
def test_a_damaged_parity_fixture_is_told(fixture, damage, is_json):
    for name in ("fixture.safetensors", "fixture.json"):
        content = json.dumps(numbers_of_one()).encode() if name.endswith(".json") else (PARITY / name).read_bytes()
        (fixture / name).write_bytes(damage(content) if name.endswith(".json") == is_json else content)
    reads_or_tells(lambda: list(check_fixture(fixture)), fixture / "fixture.safetensors", fixture / "fixture.json")


@fuzz(12)
@given(change=table_changes())
def test_a_parity_fixture_with_anything_in_it_is_told(fixture, change):
    shutil.copy(PARITY / "fixture.safetensors", fixture / "fixture.safetensors")
    (fixture / "fixture.json").write_text(json.dumps(change(numbers_of_one())))
    reads_or_tells(lambda: list(check_fixture(fixture)), fixture / "fixture.safetensors", fixture / "fixture.json")


CLIP = {
    "model_cfg": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | {"tokenizer_kwargs": {"bpe_path": "merges.txt.gz"}}},
    "preprocess_cfg": {"size": 16},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    with gzip.open(folder / "merges.txt.gz", "wt") as file:
        file.write("#version")
    save_file(training().student.network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    load_backbone(str(folder), None)
    return folder


@fuzz(25)
@given(name=st.sampled_from(["open_clip_config.json", "open_clip_model.safetensors", "merges.txt.gz"]), damage=damages())
def test_a_damaged_model_folder_is_told(clip, name, damage):
    content = (clip / name).read_bytes()
    (clip / name).write_bytes(damage(content))
    try:
        reads_or_tells(lambda: load_backbone(str(clip), None), clip)
    finally:
        (clip / name).write_bytes(content)


@fuzz(40)
@given(change=table_changes())
def test_a_model_folder_with_anything_in_its_configuration_is_told(clip, change):
    (clip / "open_clip_config.json").write_text(json.dumps(change(CLIP)))
    try:
        reads_or_tells(lambda: load_backbone(str(clip), None), clip)
    finally:
        (clip / "open_clip_config.json").write_text(json.dumps(CLIP))


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory):
    """A folder as transformers saves it."""
    folder = tmp_path_factory.mktemp("transformers") / "clip"
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {letter: number for number, letter in enumerate(["a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"])}
    text = tower | {"vocab_size": 5, "max_position_embeddings": 8, "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    load_backbone(str(folder), None)
    return folder


@fuzz(60)
@given(name=st.sampled_from(["config.json", "text_config", "preprocessor_config.json"]), change=table_changes())
def test_a_folder_of_transformers_with_anything_in_its_configuration_is_told(of_transformers, name, change):
    path = of_transformers / (name if name.endswith(".json") else "config.json")
    content = path.read_text()
    table = json.loads(content)
    path.write_text(json.dumps(change(table) if name.endswith(".json") else table | {name: change(table[name])}))
    try:
        reads_or_tells(lambda: load_backbone(str(of_transformers), None), of_transformers)
    finally:
        path.write_text(content)


@pytest.mark.parametrize(("tower", "size"), [("vision_cfg", "image_size"), ("vision_cfg", "width"), ("text_cfg", "vocab_size")])
def test_a_configuration_of_a_giant_is_refused_before_it_is_built(clip, tower, size):
    config = json.loads(json.dumps(CLIP))
    config["model_cfg"][tower][size] = 2**40
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    try:
        with pytest.raises(ConfigError, match=r"open_clip_config\.json describes a model of .* numbers or more"):
            load_backbone(str(clip), None)
    finally:
        (clip / "open_clip_config.json").write_text(json.dumps(CLIP))


DIFFUSION = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.32.0"} | {
    name: ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", "X"]
    for name in ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
}


@fuzz(40)
@given(change=table_changes(), damage=st.one_of(st.none(), damages()), value=VALUES)
def test_a_diffusion_folder_with_anything_in_its_index_is_told(tmp_path_factory, change, damage, value):
    folder = tmp_path_factory.mktemp("diffusion")
    for name in DIFFUSION:
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"x")
    content = json.dumps(change(DIFFUSION | {"more": value})).encode()
    (folder / "model_index.json").write_bytes(content if damage is None else damage(content))

    def read():
        index = read_index(folder / "model_index.json")
        judge(index)
        check_model_folder(folder, index, None)
        fingerprint(folder, index, None)

    reads_or_tells(read, folder)


def test_the_metadata_of_a_checkpoint_are_what_was_saved(this):
    with safe_open(this[2], framework="pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY])["task_name"] == "colours"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """(path, members) of a TorchScript archive with a few tensors; `tiny-fuzzed` is a model they are given for."""
    path = tmp_path_factory.mktemp("archive") / "own.pt"
    described = path.parent / "tiny-fuzzed.json"
    described.write_text(json.dumps({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(described)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).half()
    torch.jit.script(module).save(path)
    with zipfile.ZipFile(path) as read:
        return path, [(info, read.read(info)) for info in read.infolist()]


@fuzz(80)
@given(damage=damages(), is_of_pickle=st.booleans())
def test_a_damaged_archive_of_openai_is_told(archive, damage, is_of_pickle):
    """Damage to the file, and to the pickle inside of an archive that is whole."""
    path, members = archive
    with zipfile.ZipFile(path, "w") as written:
        for info, content in members:
            written.writestr(info.filename, damage(content) if is_of_pickle and info.filename.endswith("/data.pkl") else content)
    if not is_of_pickle:
        path.write_bytes(damage(path.read_bytes()))
    reads_or_tells(lambda: load_backbone("tiny-fuzzed", str(path)), path)
