"""DDAS: tells from an image alone which learned task it belongs to, or that it belongs to none (METHODS 2.8).

One small auto-encoder per task, and one for images that stand for "no task", each trained on features of frozen networks; the
one that reconstructs best names the task. It has its own tiny optimizer: nothing here touches the student.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gift_shared.errors import ConfigError, NonFiniteError
from gift_shared.progress import with_progress
from gift_train.clip.model import Backbone
from gift_train.data.batches import ImageStream

Features = Callable[[Tensor], Tensor]  # normalised pixels [B, 3, H, W] -> u [B, F], each in (0, 1)
Routing = Literal["batch", "sample"]
NO_TASK = -1
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"
_ALEXNET_SMALLEST = 64  # pixels; below, its poolings have nothing left


@dataclass(frozen=True, kw_only=True)
class SelectorSettings:
    """How tasks are told apart.

    features: "alexnet" = ImageNet-trained AlexNet, conv5 before its ReLU; "clip" = the zero-shot CLIP's image features, where
        AlexNet's weights cannot be had (another selector than the paper's); "none" = no selector, always the last task's router.
    no_task_images: "reference" = the folder or shards given by --reference-images (the method: TinyImageNet); "synthetic" = the
        run's synthetic pictures of pretraining captions (a substitution).
    threshold: largest mean-square error at which an image still belongs to a task. Read off test-like data in the paper.
    no_task_updates, task_updates: optimizer updates of an auto-encoder, batches of the recipe's batch_size.
    learning_rate, decay_epochs: Adam's rate, divided by 10 every `decay_epochs` passes over the images.
    weight_decay: Adam's own, added to the gradient.
    """

    features: Literal["alexnet", "clip", "none"]
    no_task_images: Literal["reference", "synthetic"]
    hidden: int
    threshold: float
    no_task_updates: int
    task_updates: int
    learning_rate: float
    decay_epochs: int
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("hidden", "no_task_updates", "task_updates", "decay_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, found {getattr(self, name)}.")
        if self.threshold <= 0 or self.learning_rate <= 0:
            raise ConfigError(f"threshold and learning_rate must be positive, found {self.threshold} and {self.learning_rate}.")


class Autoencoder(nn.Module):
    """u [B, F] -> Linear(F, h) -> ReLU -> Linear(h, F) -> sigmoid [B, F]; PyTorch's own initialisation."""

    def __init__(self, num_features: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(num_features, hidden)
        self.decoder = nn.Linear(hidden, num_features)

    def forward(self, features: Tensor) -> Tensor:
        return torch.as_tensor(self.decoder(F.relu(self.encoder(features))).sigmoid())

    @torch.no_grad()
    def errors(self, features: Tensor) -> Tensor:
        """Mean-square error [B] of each reconstruction."""
        return torch.as_tensor((self(features) - features).square().mean(dim=1))


class TaskSelector:
    """The auto-encoders learned so far: number 0 stands for no task, number j + 1 for task j."""

    def __init__(self, features: Features, settings: SelectorSettings) -> None:
        self.features = features
        self.settings = settings
        self.autoencoders: list[Autoencoder] = []

    def learn_task(self, task_index: int, task_name: str, own: ImageStream, no_task: ImageStream) -> None:
        """Train this task's auto-encoder; before the first task's, the one for no task. What stands at its place is replaced."""
        settings = self.settings
        if not self.autoencoders or task_index == 0:
            self.autoencoders = [train_autoencoder(self.features, no_task, settings.no_task_updates, settings, "selector: no task")]
        trained = train_autoencoder(self.features, own, settings.task_updates, settings, f"selector: {task_name}")
        self.autoencoders = [*self.autoencoders[: task_index + 1], trained]

    @torch.no_grad()
    def choose(self, images: Tensor, routing: Routing) -> Tensor:
        """The task [B] of each image, NO_TASK for none. "batch": all images vote together, "sample": each for itself.

        Auto-encoders of tasks to come do not exist here; in the reference they do, untrained, and never win.
        """
        features = self.features(images)
        errors = torch.stack([autoencoder.errors(features) for autoencoder in self.autoencoders], dim=1)
        return route(errors, self.settings.threshold, routing)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of all auto-encoders."""
        coders = enumerate(self.autoencoders)
        return {f"{number}/{name}": weight for number, coder in coders for name, weight in coder.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, in number and size."""
        self.autoencoders = []
        while f"{len(self.autoencoders)}/encoder.weight" in state:
            prefix = f"{len(self.autoencoders)}/"
            hidden, num_features = state[f"{prefix}encoder.weight"].shape
            autoencoder = Autoencoder(num_features, hidden).to(state[f"{prefix}encoder.weight"].device)
            autoencoder.load_state_dict({name: state[f"{prefix}{name}"] for name in autoencoder.state_dict()})
            self.autoencoders.append(autoencoder.requires_grad_(False))


def route(errors: Tensor, threshold: float, routing: Routing) -> Tensor:
    """Errors [B, 1 + tasks], column 0 = no task -> tasks [B]: the column of least error less one, NO_TASK beyond the threshold.

    "batch" averages each column over the batch first, so that all B images get one answer.
    """
    if routing == "batch":
        errors = errors.mean(dim=0, keepdim=True).expand_as(errors)
    least, column = errors.min(dim=1)
    return torch.where(least > threshold, NO_TASK, column - 1)


def train_autoencoder(features: Features, images: ImageStream, num_updates: int, settings: SelectorSettings, label: str) -> Autoencoder:
    """Fit one auto-encoder to the features of the stream's first `num_updates` batches; progress on stderr.

    Raises: NonFiniteError if it did not stay finite.
    """
    autoencoder: Autoencoder | None = None
    for step, batch in enumerate(with_progress(images.take(num_updates), label, num_updates, "step", stays=False)):
        target = features(batch)
        if autoencoder is None:
            autoencoder = Autoencoder(target.shape[1], settings.hidden).to(target.device)
            optimizer = torch.optim.Adam(autoencoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.1 ** (step // images.batches_per_epoch // settings.decay_epochs)
        loss = F.mse_loss(autoencoder(target), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert autoencoder is not None
    if not bool(loss.isfinite()):
        raise NonFiniteError(f"{label}: the reconstruction error is {loss.item()}. Lower method_config.selector.learning_rate.")
    return autoencoder.requires_grad_(False)


def selector_features(settings: SelectorSettings, student: Backbone) -> Features:
    """The features the settings ask for. `student` must be plain CLIP whenever they are computed.

    Raises: ConfigError if AlexNet's weights cannot be had or the model's images are too small for it.
    """
    if settings.features == "clip":
        return ClipFeatures(student)
    side = student.image_settings[0]
    if side < _ALEXNET_SMALLEST:
        raise ConfigError(
            f"AlexNet needs images of {_ALEXNET_SMALLEST} pixels, the model reads {side}. Set method_config.selector.features=clip."
        )
    return AlexNetFeatures(_pretrained_alexnet()).to(student.device)


class ClipFeatures:
    """u = sigmoid(sqrt(D) f), f the L2-normalised feature of plain CLIP [B, D]: entries of unit size, whatever D."""

    def __init__(self, student: Backbone) -> None:
        self.student = student

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        features = self.student.encode_images(images)
        return torch.as_tensor((features.shape[1] ** 0.5 * features).sigmoid())


class AlexNetFeatures(nn.Module):
    """u = sigmoid(conv5), before its ReLU, flattened: 256 x 13 x 13 = 43,264 at 224 pixels. Fed CLIP-normalised images (C5)."""

    def __init__(self, alexnet: nn.Module) -> None:
        super().__init__()
        self.layers = alexnet.features[:-2].eval().requires_grad_(False)  # type: ignore[index, union-attr]

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(images).flatten(1).sigmoid())


def _pretrained_alexnet() -> nn.Module:
    from torchvision.models import AlexNet_Weights, alexnet

    network: nn.Module = alexnet(weights=None)
    try:
        weights = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"torchvision's AlexNet weights could not be had ({error}). Put {ALEXNET_FILE} into"
            f" {torch.hub.get_dir()}/checkpoints, or set method_config.selector.features=clip: another selector than the paper's."
        ) from error
    network.load_state_dict(weights)
    return network
