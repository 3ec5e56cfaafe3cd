"""The selector: its size, how errors become a choice, and that it tells tasks apart after a little training."""

import math
import tarfile
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image

from gift_shared.errors import ConfigError, DataError
from gift_train.data.batches import ImageStream
from gift_train.data.reference_images import no_task_images, open_reference_images
from gift_train.data.sources import NoTaskSource
from gift_train.data.transforms import image_transforms
from gift_train.methods.moe_adapter.task_selector import (
    NO_TASK,
    AlexNetFeatures,
    Autoencoder,
    SelectorSettings,
    TaskSelector,
    route,
    selector_features,
    train_autoencoder,
)
from gift_train.recipes.recipe import load_recipe

SETTINGS = {
    "features": "clip",
    "no_task_images": "synthetic",
    "hidden": 4,
    "threshold": 0.01,
    "no_task_updates": 150,
    "task_updates": 150,
    "learning_rate": 0.05,
    "decay_epochs": 1000,
    "weight_decay": 0.0,
}
EVALUATION = image_transforms(8).evaluation


def stream(centre, batches_per_epoch=5):
    """Images of one value around `centre`, [16, 1, 1, 6]."""
    return ImageStream(
        batches_per_epoch=batches_per_epoch,
        take=lambda num_batches: (centre + 0.1 * torch.randn(16, 1, 1, 6) for _ in range(num_batches)),
    )


def features(images):
    return images.flatten(1).sigmoid()


def test_size_at_alexnet_features_is_the_papers():
    network = AlexNetFeatures(torchvision.models.alexnet(weights=None))
    found = network(torch.randn(2, 3, 224, 224))
    assert found.shape == (2, 43_264)
    assert 0 < found.min() < found.max() < 1
    hidden = load_recipe("moe_adapter", "mtil").method_config.selector.hidden
    assert sum(parameter.numel() for parameter in Autoencoder(43_264, hidden).parameters()) == 8_696_164


def test_alexnet_features_end_before_the_fifth_relu():
    network = torchvision.models.alexnet(weights=None).eval()
    images = torch.randn(1, 3, 224, 224)
    found = AlexNetFeatures(network)(images)
    after = network.features[11:](found.logit().view(1, 256, 13, 13))  # ReLU and pooling
    torch.testing.assert_close(after, network.features(images), atol=1e-5, rtol=1e-4)
    assert (found < 0.5).any()  # negative values are still there


@pytest.mark.parametrize("routing", ["batch", "sample"])
def test_least_error_names_the_task(routing):
    errors = torch.tensor([[0.05, 0.01, 0.03], [0.05, 0.02, 0.03]])
    assert route(errors, 0.04, routing).tolist() == [0, 0]
    assert route(errors, 0.005, routing).tolist() == [NO_TASK, NO_TASK]
    assert route(errors.flip(1), 0.06, routing).tolist() == [0, 0]
    assert route(errors[:, [1, 0, 2]], 0.04, routing).tolist() == [NO_TASK, NO_TASK]  # the no-task coder wins


def test_a_batch_votes_where_samples_differ():
    errors = torch.tensor([[0.9, 0.1, 0.3], [0.9, 0.1, 0.3], [0.9, 0.3, 0.2], [0.1, 0.9, 0.9]])
    assert route(errors, 0.25, "sample").tolist() == [0, 0, 1, NO_TASK]
    assert route(errors, 0.5, "batch").tolist() == [0, 0, 0, 0]
    assert route(errors, 0.3, "batch").tolist() == [NO_TASK] * 4  # the mean error 0.35 is beyond the threshold


def test_learned_tasks_are_told_apart_and_foreign_images_are_sent_away():
    torch.manual_seed(0)
    selector = TaskSelector(features, SelectorSettings(**SETTINGS))
    centres = torch.tensor([[3, -3, 0, 0, 0, 0], [0, 0, 3, -3, 0, 0], [0, 0, 0, 0, 3, -3]]).float()[:, None, None, None]
    foreign, first, second = centres
    selector.learn_task(0, "first", stream(first), stream(foreign))
    mixed = torch.cat([first.expand(3, 1, 1, 6), second.expand(2, 1, 1, 6), foreign.expand(1, 1, 1, 6)])
    assert selector.choose(mixed, "sample").tolist() == [0, 0, 0, NO_TASK, NO_TASK, NO_TASK]
    selector.learn_task(1, "second", stream(second), stream(foreign))
    assert selector.choose(mixed, "sample").tolist() == [0, 0, 0, 1, 1, NO_TASK]
    again = TaskSelector(features, SelectorSettings(**SETTINGS))
    again.load_state_dict(selector.state_dict())
    assert again.choose(mixed, "sample").tolist() == [0, 0, 0, 1, 1, NO_TASK]


def test_beginning_a_task_again_replaces_its_coder_and_keeps_the_others():
    torch.manual_seed(0)
    selector = TaskSelector(features, SelectorSettings(**SETTINGS | {"no_task_updates": 3, "task_updates": 3}))
    for index in (0, 1, 1):
        earlier = selector.autoencoders[: index + 1]
        selector.learn_task(index, "task", stream(0.0), stream(1.0))
    assert len(selector.autoencoders) == 3
    assert selector.autoencoders[:2] == earlier


def test_learning_rate_falls_tenfold_by_epochs(monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    settings = SelectorSettings(**SETTINGS | {"decay_epochs": 2, "learning_rate": 0.01})
    train_autoencoder(features, stream(0.0, batches_per_epoch=2), 10, settings, "test")
    assert rates == pytest.approx([0.01] * 4 + [0.001] * 4 + [0.0001] * 2)


def test_coder_is_trained_by_the_mean_square_error():
    torch.manual_seed(0)
    coder = Autoencoder(6, 3)
    target = features(torch.randn(5, 1, 1, 6))
    rebuilt = ((target @ coder.encoder.weight.T + coder.encoder.bias).clamp(min=0) @ coder.decoder.weight.T + coder.decoder.bias).sigmoid()
    torch.testing.assert_close(coder.errors(target), ((rebuilt - target) ** 2).sum(dim=1) / 6)
    assert math.isfinite(coder.errors(target).sum())


class OfSide:
    """What `selector_features` asks of a model."""

    def __init__(self, side):
        self.image_settings = (side, (0.5,) * 3, (0.5,) * 3)
        self.device = torch.device("cpu")


def test_missing_alexnet_weights_are_told_in_one_line(monkeypatch):
    def unreachable(*_, **options):
        assert options["weights_only"]
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models.AlexNet_Weights, "get_state_dict", unreachable)
    settings = SelectorSettings(**SETTINGS | {"features": "alexnet"})
    with pytest.raises(ConfigError, match=r"AlexNet weights could not be had \(.*no network.*Put alexnet-owt.*selector.features=clip"):
        selector_features(settings, OfSide(224))
    with pytest.raises(ConfigError, match="AlexNet needs images of 64 pixels, the model reads 32"):
        selector_features(settings, OfSide(32))


def test_impossible_selector_settings_are_refused():
    with pytest.raises(ConfigError, match="task_updates must be 1 or more, found 0"):
        SelectorSettings(**SETTINGS | {"task_updates": 0})
    with pytest.raises(ConfigError, match="threshold and learning_rate must be positive"):
        SelectorSettings(**SETTINGS | {"threshold": 0.0})


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), colour).save(path)


def test_reference_images_are_found_at_any_depth_and_in_tars(tmp_path):
    """TinyImageNet's layout: train/<class>/images/<file>.JPEG."""
    for number, colour in enumerate(("red", "green", "blue")):
        picture(tmp_path / f"tiny/train/n{number}/images/{number}.JPEG", colour)
    folder = open_reference_images(tmp_path / "tiny", EVALUATION)
    assert len(folder) == 3
    (tmp_path / "tars").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / f"tars/{number}.tar", "w") as tar:
            tar.add(tmp_path / f"tiny/train/n{number}/images/{number}.JPEG", f"{number}.jpeg")
            tar.add(__file__, f"{number}.txt")
    tars = open_reference_images(tmp_path / "tars", EVALUATION)
    assert len(tars) == 2
    assert all(torch.equal(tars[number][0], folder[number][0]) for number in range(2))
    assert len(open_reference_images(tmp_path / "tars/0.tar", EVALUATION)) == 1


def test_bad_reference_images_are_told_with_their_path(tmp_path):
    with pytest.raises(DataError, match=r"No reference images at .*absent"):
        open_reference_images(tmp_path / "absent", EVALUATION)
    with pytest.raises(DataError, match="holds no image"):
        open_reference_images(tmp_path, EVALUATION)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.jpg .*does not decode"):
        open_reference_images(tmp_path, EVALUATION)


def test_missing_source_of_no_task_images_is_told():
    assert no_task_images(NoTaskSource.NONE, None, None, "base", EVALUATION) is None
    with pytest.raises(ConfigError, match=r"give their folder or tars with --reference-images, or set .*no_task_images=synthetic"):
        no_task_images(NoTaskSource.REFERENCE, None, None, "base", EVALUATION)
    with pytest.raises(ConfigError, match="give their output folder with --shards"):
        no_task_images(NoTaskSource.SYNTHETIC, None, None, "base", EVALUATION)
