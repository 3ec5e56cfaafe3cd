"""Weight files as people have them, on a CLIP of full structure and few numbers: OpenAI's archive and state dict, open_clip's own."""

import io
import json
import os
import pickle
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gift_shared.errors import ConfigError
from gift_train.clip.description import describe
from gift_train.clip.load import load_backbone
from gift_train.clip.model_config import asks_for_activation
from gift_train.clip.openai_files import read_torchscript

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SIZES = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(12), "vocab_size": torch.tensor(49408)}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
TEXTS = torch.tensor([[49406, 320, 1125, 49407, *[0] * 8], [49406, 2368, 49407, *[0] * 9]])


class Holder(nn.Module):
    """A module of the archive: it holds tensors and modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module", autouse=True)
def tiny_model(tmp_path_factory):
    """Makes `tiny-CLIP` and `tiny-CLIP-quickgelu` names of open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    for name, more in (("tiny-CLIP", {}), ("tiny-CLIP-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps(TINY | more))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def halves():
    """The weights of a tiny CLIP as OpenAI keeps them, in 16 bits."""
    torch.manual_seed(0)
    vision, text = open_clip.CLIPVisionCfg(**TINY["vision_cfg"]), open_clip.CLIPTextCfg(**TINY["text_cfg"])
    network = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    return {name: tensor.half() for name, tensor in network.state_dict().items()}


def scripted(tensors):
    """A TorchScript module of these names; each block also holds the mask that OpenAI's hold and no state dict shows."""
    root = Holder()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, Holder())
            module = module._modules[parent]
        if tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)
    for block in root.transformer.resblocks.children():
        block.attn_mask = torch.zeros(12, 12)
    return torch.jit.script(root)


def features(backbone):
    with torch.no_grad():
        return torch.cat([backbone.encode_images(IMAGES), backbone.encode_texts(TEXTS)])


def expected(halves, quick_gelu):
    vision, text = open_clip.CLIPVisionCfg(**TINY["vision_cfg"]), open_clip.CLIPTextCfg(**TINY["text_cfg"])
    network = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu).eval()
    network.load_state_dict(halves)
    with torch.no_grad():
        return torch.cat([network.encode_image(IMAGES, normalize=True), network.encode_text(TEXTS, normalize=True)])


def test_openais_archive_is_read_with_quickgelu_and_in_32_bits(halves, tmp_path, caplog):
    path = tmp_path / "ViT-B-16.pt"
    scripted(halves | SIZES).save(path)
    backbone = load_backbone("tiny-CLIP", str(path))
    assert {parameter.dtype for parameter in backbone.parameters().values()} == {torch.float32}
    assert torch.allclose(features(backbone), expected(halves, quick_gelu=True), atol=1e-5)
    assert not torch.allclose(features(backbone), expected(halves, quick_gelu=False), atol=1e-4)
    assert caplog.text == ""  # of random weights least of all


def test_an_archive_is_read_as_torch_reads_it(halves, tmp_path):
    path = tmp_path / "model.pt"
    module = scripted(halves | SIZES)
    module.save(path)
    ours = {name: tensor for name, tensor in read_torchscript(path).items() if not name.endswith("attn_mask")}
    assert ours.keys() == module.state_dict().keys()
    assert all(torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
def test_openais_state_dict_is_read_with_quickgelu(halves, tmp_path, wrap):
    torch.save(wrap(halves | SIZES), tmp_path / "clip.pt")
    ours = features(load_backbone("tiny-CLIP", str(tmp_path / "clip.pt")))
    assert torch.allclose(ours, expected(halves, quick_gelu=True), atol=1e-5)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_training_checkpoint_of_open_clip_is_read_as_it_is_said_to_be_trained(halves, tmp_path, quick_gelu):
    checkpoint = {"epoch": 7, "name": "mine", "state_dict": {f"module.{name}": tensor.float() for name, tensor in halves.items()}}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    torch.save(checkpoint | {"optimizer": optimizer.state_dict()}, tmp_path / "epoch_7.pt")
    ours = features(load_backbone("tiny-CLIP", str(tmp_path / "epoch_7.pt"), quick_gelu=quick_gelu))
    assert torch.allclose(ours, expected(halves, quick_gelu=quick_gelu), atol=1e-5)


WRAPPED = {
    "compiled and distributed": lambda state: {"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
    "distributed and compiled": lambda state: {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
    "a compiled tower": lambda state: {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in state.items()},
    "averaged by torch": lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in state.items()},
    "as plain PyTorch saves it": lambda state: {"model_state_dict": state, "epoch": 3},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_training_wraps_around_names_is_taken_off(halves, tmp_path, kind):
    torch.save(WRAPPED[kind](halves), tmp_path / "mine.pt")
    ours = features(load_backbone("tiny-CLIP", str(tmp_path / "mine.pt"), quick_gelu=True))
    assert torch.allclose(ours, expected(halves, quick_gelu=True), atol=1e-5)


def test_of_weights_and_their_average_the_weights_are_taken_and_that_is_told(halves, tmp_path, caplog):
    averaged = {name: tensor + 1 for name, tensor in halves.items()}
    torch.save({"state_dict": halves, "state_dict_ema": averaged}, tmp_path / "both.pt")
    ours = features(load_backbone("tiny-CLIP", str(tmp_path / "both.pt"), quick_gelu=True))
    assert torch.allclose(ours, expected(halves, quick_gelu=True), atol=1e-5)
    assert "both.pt holds averaged weights as well (state_dict_ema): the averages are passed over" in caplog.text


@pytest.mark.parametrize("content", [{"epoch": 3, "optimizer": {"state": {}}}, [1, 2], {}])
def test_a_file_without_weights_is_told(tmp_path, content):
    torch.save(content, tmp_path / "epoch.pt")
    with pytest.raises(ConfigError, match=r"epoch\.pt holds no weights: expected names and tensors"):
        load_backbone("tiny-CLIP", str(tmp_path / "epoch.pt"), quick_gelu=True)


def test_a_file_that_does_not_say_how_it_was_trained_is_asked_about(halves, tmp_path):
    path = tmp_path / "mine.pt"
    torch.save(halves, path)
    with pytest.raises(ConfigError, match=r"Neither .*mine\.pt nor the name tiny-CLIP says .* give --quick-gelu yes .* or --quick-gelu no"):
        load_backbone("tiny-CLIP", str(path))
    assert describe("tiny-CLIP", str(path), True).flag_decides
    assert not describe("tiny-CLIP-quickgelu", str(path), True).flag_decides
    assert torch.allclose(features(load_backbone("tiny-CLIP-quickgelu", str(path))), expected(halves, quick_gelu=True), atol=1e-5)
    with pytest.raises(ConfigError, match="--model tiny-CLIP-quickgelu says QuickGELU, --quick-gelu no says GELU"):
        load_backbone("tiny-CLIP-quickgelu", str(path), quick_gelu=False)


def test_what_a_file_says_of_itself_is_not_overruled(halves, tmp_path):
    torch.save(halves | SIZES, tmp_path / "openai.pt")
    with pytest.raises(ConfigError, match=r"openai\.pt, by OpenAI's marks, says QuickGELU, --quick-gelu no says GELU"):
        load_backbone("tiny-CLIP", str(tmp_path / "openai.pt"), quick_gelu=False)
    assert not describe("tiny-CLIP", str(tmp_path / "openai.pt"), True).flag_decides


def test_a_configuration_beside_a_file_says_what_it_is(halves, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(halves, path)
    save_file(halves, tmp_path / "older.safetensors")
    beside = {"model_cfg": TINY | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(beside))
    backbone = load_backbone("tiny-CLIP", str(path))
    assert torch.allclose(features(backbone), expected(halves, quick_gelu=True), atol=1e-5)
    assert (backbone.image_settings[1], backbone.resize_settings.mode) == ([0.5] * 3, "squash")
    other = beside | {"model_cfg": TINY | {"text_cfg": TINY["text_cfg"] | {"layers": 3}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(other))
    with pytest.raises(
        ConfigError, match=r"is of another model: text_cfg\.layers is 3 for .*open_clip_config.json and 2 for --model tiny-CLIP"
    ):
        load_backbone("tiny-CLIP", str(path))


def test_towers_of_other_libraries_are_not_asked_about(tmp_path):
    text = {"hf_model_name": "xlm-roberta-base"}
    assert not asks_for_activation(TINY | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}, "text_cfg": text})
    assert asks_for_activation(TINY | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}})
    assert asks_for_activation(TINY | {"text_cfg": text})
    assert not asks_for_activation(TINY | {"vision_cfg": {"layers": [1, 1, 1, 1]}, "text_cfg": text})
    other = TINY | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}, "text_cfg": text}
    (tmp_path / "tiny-other.json").write_text(json.dumps(other))
    open_clip.add_model_config(tmp_path / "tiny-other.json")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert describe("tiny-other", str(tmp_path / "other.safetensors")).config["model_cfg"]["quick_gelu"] is False
    with pytest.raises(ConfigError, match="both towers of this model are of other libraries"):
        describe("tiny-other", str(tmp_path / "other.safetensors"), True)


def test_torchscript_without_openais_sizes_is_told_to_be_taken_for_theirs(halves, tmp_path, caplog):
    scripted(halves).save(tmp_path / "model.pt")
    load_backbone("tiny-CLIP", str(tmp_path / "model.pt"))
    assert "model.pt is TorchScript without the sizes that OpenAI's files hold. It is read as one of theirs, with QuickGELU" in caplog.text


def test_openais_file_of_another_model_is_told(halves, tmp_path):
    torch.save(halves | SIZES | {"visual.proj": torch.zeros(16, 8)}, tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match=r"clip\.pt holds no tiny-CLIP\. .*'visual.proj' is \[16, 8\], not \[16, 16\]"):
        load_backbone("tiny-CLIP", str(tmp_path / "clip.pt"))


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil > evil.txt",)


def rewritten(path, changes):
    """The archive with other contents for some members, by the ends of their names."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            new = next((new for end, new in changes.items() if info.filename.endswith(end)), content)
            archive.writestr(info.filename, new, compress_type=info.compress_type)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"/data.pkl": pickle.dumps(Evil())}, r"it names (posix|nt)\.system, which is no part of weights; it is refused"),
        ({"/data/0": b""}, "could not be loaded"),
        ({"/data/0": b"1234"}, "could not be loaded"),
        ({"/data.pkl": b"\x80\x02}q\x00"}, "could not be loaded"),
        ({"/data.pkl": b""}, "could not be loaded"),
        ({"/data.pkl": b"\x80\x02}r\x00\x00\x00\x7f."}, "it claims to remember 2130706432 objects"),
    ],
)
def test_an_archive_that_holds_more_or_less_than_weights_is_refused(halves, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    scripted(halves | SIZES).save("model.pt")
    rewritten("model.pt", changes)
    with pytest.raises(ConfigError, match=message) as error:
        load_backbone("tiny-CLIP", "model.pt")
    assert "model.pt" in str(error.value)
    assert not (tmp_path / "evil.txt").exists()


def test_code_in_an_archive_is_never_run(halves, tmp_path):
    """Code that does not even parse is no obstacle, since nobody reads it."""
    scripted(halves | SIZES).save(tmp_path / "model.pt")
    rewritten(tmp_path / "model.pt", {".py": b"this is no code", "/constants.pkl": pickle.dumps(Evil())})
    with pytest.raises(RuntimeError):
        torch.jit.load(io.BytesIO((tmp_path / "model.pt").read_bytes()))
    assert torch.allclose(features(load_backbone("tiny-CLIP", str(tmp_path / "model.pt"))), expected(halves, quick_gelu=True), atol=1e-5)
