"""Exact shortcuts of the backbone and the teacher, against the plain way, in value and gradient."""

from pathlib import Path

import open_clip
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from gift_shared.errors import ConfigError
from gift_train.clip.description import describe
from gift_train.clip.load import backbone_from_tensors, load_backbone, pick_device, set_matmul_precision
from gift_train.clip.random_sentences import random_sentences, text_frame
from gift_train.data.sources import ReplaySource
from gift_train.methods.icarl import herd
from gift_train.methods.teacher import Teacher
from gift_train.methods.texts import encode_captions
from gift_train.parity.replay import Fixture, _replay_batch


@pytest.fixture(scope="module")
def fixture():
    return Fixture(Path(__file__).parents[2] / "golden/parity")


@pytest.fixture
def student(fixture):
    return backbone_from_tensors(fixture.weights("previous"))


@pytest.fixture
def batch(fixture, student):
    return _replay_batch(fixture, student, ReplaySource.SYNTHETIC, 0)


def gradients(student, features):
    student.network.zero_grad()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in student.parameters().items() if parameter.grad is not None}


def assert_same_gradients(ours, plain):
    for name in plain:
        scale = plain[name].abs().max() + 1e-6
        assert (ours[name] - plain[name]).abs().max() <= 1e-4 * scale, name


def test_trimmed_tokens_give_the_plain_features_and_gradients(fixture, student):
    tokens = fixture.tensor("class_tokens")
    trimmed = student.trim(tokens)
    assert trimmed.shape[1] < tokens.shape[1]
    plain = F.normalize(student.network.encode_text(tokens), dim=-1)
    ours = student.encode_texts(trimmed)
    assert torch.allclose(ours, plain, atol=1e-6)
    plain_gradients = gradients(student, plain)
    ours_gradients = gradients(student, student.encode_texts(trimmed))
    # Positions nobody reads get a zero row in the plain gradient, and are not there in the other.
    assert_same_gradients(ours_gradients, plain_gradients)


def test_distinct_captions_once_give_the_plain_features_and_gradients(student, batch):
    assert len(batch.caption_ids.unique()) < len(batch.caption_ids)
    plain = student.encode_texts(batch.tokens)
    assert torch.allclose(encode_captions(student, batch), plain, atol=1e-6)
    plain_gradients = gradients(student, plain)
    assert_same_gradients(gradients(student, encode_captions(student, batch)), plain_gradients)


def test_remembered_teacher_features_are_those_of_the_batch(fixture, student, batch):
    import dataclasses

    keyed = dataclasses.replace(batch, sample_keys=tuple(f"key-{row}" for row in range(len(batch.captions))))
    cached, plain = Teacher(student.frozen_copy()), Teacher(student.frozen_copy())
    halves = [
        dataclasses.replace(
            keyed,
            images=keyed.images[part],
            captions=keyed.captions[part],
            tokens=keyed.tokens[part],
            caption_ids=keyed.caption_ids[part],
            sample_keys=keyed.sample_keys[part],
        )
        for part in (slice(0, 5), slice(5, None))
    ]
    cached.cache_features(halves)
    assert torch.allclose(cached.image_features(keyed), plain.image_features(keyed), atol=1e-6)
    assert torch.allclose(cached.text_features(keyed), plain.text_features(keyed), atol=1e-6)
    assert not cached.image_features(keyed).requires_grad


def test_teacher_does_not_move_with_the_student(student, batch):
    teacher = Teacher(student.frozen_copy())
    before = teacher.image_features(batch)
    with torch.no_grad():
        for parameter in student.parameters().values():
            parameter += 0.1
    assert torch.equal(before, teacher.image_features(batch))


def test_temperature_takes_no_gradient(student):
    assert "logit_scale" not in student.parameters()
    assert not student.network.logit_scale.requires_grad


def test_weights_of_another_model_are_refused(student):
    weights = student.weights_copy()
    weights["ln_final.bias"] = torch.zeros(3)
    with pytest.raises(ConfigError, match=r"'ln_final.bias' is \[3\], not \[64\]"):
        student.load_weights(weights)
    del weights["ln_final.bias"]
    with pytest.raises(ConfigError, match=r"'ln_final\.bias' is on one side only"):
        student.load_weights(weights)


def test_random_sentences_start_end_and_pad_as_clip_does():
    tokens = random_sentences(text_frame(open_clip.get_tokenizer("ViT-B-16")), 49408, 50)
    assert tokens.shape == (50, 77)
    assert (tokens[:, 0] == 49406).all()
    assert (tokens[:, 11] == 49407).all()
    assert (tokens[:, 12:] == 0).all()
    assert tokens[:, 1:11].max() < 49408


# A tokenizer of Hugging Face's around words, what it puts before and after a text, and on which side it pads.
FRAMES = {
    "XLM-R and MetaCLIP 2": ("<s> $A </s>", "right", ["<s>"], "</s>"),
    "BERT": ("[CLS] $A [SEP]", "right", ["[CLS]"], "[SEP]"),
    "T5 and SigLIP": ("$A </s>", "right", [], "</s>"),
    "padding alone": ("$A", "right", [], "<pad>"),
}


def hugging_face_tokenizer(folder, template, side):
    special = ["<pad>", *(word for word in template.split() if word != "$A")]
    words = tokenizers.models.WordLevel({word: number for number, word in enumerate([*special, "a", "b", "<unk>"])}, unk_token="<unk>")
    made = tokenizers.Tokenizer(words)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[(word, made.token_to_id(word)) for word in special[1:]]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", padding_side=side).save_pretrained(folder)
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=16, clean="whitespace")


@pytest.mark.parametrize("kind", FRAMES)
def test_random_sentences_start_end_and_pad_as_the_models_tokenizer_does(tmp_path, kind):
    template, side, before, end = FRAMES[kind]
    tokenizer = hugging_face_tokenizer(tmp_path, template, side)
    ids = tokenizer.tokenizer.convert_tokens_to_ids
    tokens = random_sentences(text_frame(tokenizer), 1000, 50)
    assert tokens.shape == (50, 16)
    assert tokens[:, : len(before)].tolist() == [ids(before)] * 50
    assert (tokens[:, len(before) + 10] == ids(end)).all()
    assert (tokens[:, len(before) + 11 :] == ids("<pad>")).all()
    assert len(set(map(tuple, tokens.tolist()))) == 50  # once, with other tokenizers than OpenAI's, all were one


def test_a_tokenizer_that_pads_before_the_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not say where a text begins and ends"):
        text_frame(hugging_face_tokenizer(tmp_path, "<s> $A </s>", "left"))


def test_bf16_leaves_products_outside_the_towers_in_fp32():
    for precision, allows in (("tf32", True), ("bf16", False), ("fp32", False)):
        set_matmul_precision(precision)
        assert torch.backends.cuda.matmul.allow_tf32 is allows
        assert torch.backends.cudnn.allow_tf32 is allows


def test_herding_follows_the_mean_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    # mean = (.533, .6): f.mean is .533, .8, .6, so row 1. Then 2 mean - f_1 = (.467, .4): .467 for row 0, .4 for row 2.
    assert herd(features, 2).tolist() == [1, 0]
    assert herd(features, 10).tolist() == [1, 0, 2]


def test_openai_tag_brings_quickgelu_under_the_plain_model_name():
    described = {tag: describe("ViT-B-16", tag).config["model_cfg"].get("quick_gelu") for tag in ("openai", "laion2b_s34b_b88k", "dfn2b")}
    assert described == {"openai": True, "laion2b_s34b_b88k": False, "dfn2b": True}


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-61", "openai", r"Unknown model 'ViT-B-61'. Did you mean 'ViT-B-16'\?"),
        ("ViT-B-16", None, "--model ViT-B-16 needs --pretrained: a weights file, 'random', or one of"),
        ("ViT-B-16", "opneai", r"Unknown pretrained tag 'opneai'. Did you mean 'openai'\?.*no file of that name"),
        ("mini", "openai", "goes with an open_clip name"),
    ],
)
def test_model_that_cannot_be_had_is_told(model, pretrained, message):
    with pytest.raises(ConfigError, match=message):
        load_backbone(model, pretrained)


def test_device_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="Device 'quantum' cannot be used here"):
        pick_device("quantum")


def test_weights_file_that_is_a_pickle_of_code_is_refused(tmp_path):
    import pickle

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Code()))
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_backbone("ViT-S-32-alt", str(tmp_path / "weights.pt"))
    assert not (tmp_path / "ran").exists()
