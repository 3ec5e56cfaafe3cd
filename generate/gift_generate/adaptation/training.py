"""The training of one task's LoRA, top to bottom: begin or go on, update, keep the state now and then, save."""

import math
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from gift_generate.adaptation.chance import Chance
from gift_generate.adaptation.latents import Latents
from gift_generate.adaptation.model import AdaptedModel
from gift_generate.adaptation.options import AdaptOptions
from gift_generate.adaptation.record import AdaptationFolder
from gift_generate.adaptation.task_images import TaskToLearn
from gift_shared.errors import DataError, NonFiniteError
from gift_shared.preemption import PreemptionNotice
from gift_shared.progress import Progress

WEIGHT_DECAY, MOST_GRADIENT = 1e-2, 1.0  # of AdamW; the norm that gradients are cut to
LOSSES_SHOWN = 50  # one alone says little: it is of a few strengths of noise


def train(model: AdaptedModel, task: TaskToLearn, options: AdaptOptions, folder: AdaptationFolder, notice: PreemptionNotice) -> None:
    """Train a task's LoRA and save it, from the last state that was kept on.

    Raises: NonFiniteError, Preempted, and DataError for a state or an image that is damaged.
    """
    chance = Chance(task.name, len(task.images), options.seed)
    parameters = model.begin(chance.generator("start").initial_seed())
    optimizer = torch.optim.AdamW(parameters.values(), lr=options.learning_rate, weight_decay=WEIGHT_DECAY)
    latents = Latents(model.encoder, task, model.size)
    first = _go_on(folder, parameters, optimizer)
    losses: deque[float] = deque(maxlen=LOSSES_SHOWN)
    with Progress(f"adapt {task.name}", options.steps, "step", done=first) as progress:
        for step in range(first, options.steps):
            if step > first and (step % options.checkpoint_every == 0 or notice.has_come):
                folder.save_state(step, _state(parameters, optimizer))
            notice.obey(f"{options.steps - step} of {options.steps} updates are left for {task.name}")
            loss = _loss(model, task, options, chance, latents, step)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NonFiniteError(f"{task.name}: the loss became {losses[-1]} at step {step}. Try a smaller --learning-rate.")
            _update(loss, parameters, optimizer, _learning_rate(step, options))
            progress.note(f"loss {sum(losses) / len(losses):.4f}")
            progress.advance()
    model.save(folder.weights)
    folder.drop_state()


def _loss(model: AdaptedModel, task: TaskToLearn, options: AdaptOptions, chance: Chance, latents: Latents, step: int) -> Tensor:
    indices = chance.images(step, options.batch_size)
    generator = chance.generator(f"step {step}")
    is_empty = torch.rand(len(indices), generator=generator) < options.caption_dropout
    timesteps = torch.randint(0, model.num_timesteps, (len(indices),), generator=generator)
    clean = latents.draw(indices, generator)
    noise = torch.randn(clean.shape, generator=generator)
    captions = ["" if empty else task.caption(index) for index, empty in zip(indices, is_empty.tolist(), strict=True)]
    return model.loss(clean, noise.to(model.device), timesteps.to(model.device), captions)


def _update(loss: Tensor, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.values(), MOST_GRADIENT)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()


def _learning_rate(step: int, options: AdaptOptions) -> float:
    return options.learning_rate * (1 + math.cos(math.pi * step / options.steps)) / 2


def _state(parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {f"lora/{name}": weight for name, weight in parameters.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
    return tensors


def _go_on(folder: AdaptationFolder, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put a state that was kept into LoRA and optimizer. Returns: the update to go on with."""
    kept = folder.load_state()
    if kept is None:
        return 0
    step, tensors = kept
    moments: dict[int, dict[str, Tensor]] = {}
    try:
        with torch.no_grad():
            for name, weight in parameters.items():
                weight.copy_(tensors.pop(f"lora/{name}"))
        for place, tensor in tensors.items():
            _, number, name = place.split("/")
            moments.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except (LookupError, RuntimeError, ValueError) as error:
        raise DataError(f"{folder.path}: its training's state does not fit the model: {error}. Remove it to begin anew.") from error
    return step
