"""LoRAs added to a pipeline's weights: those for all captions once, those of one source's captions whenever such a batch comes.

Weights are exchanged and not computed anew: what a source's captions are painted with is exactly the model that has its LoRAs fused, a step
costs what it did, and nothing depends on which batch came before.
"""

import re
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from torch import Tensor

from gift_generate.rendering.families.base import Pipeline
from gift_generate.rendering.loras import Lora
from gift_shared.errors import ConfigError, first_line

LORA_LAYER = re.compile(r"\.(lora_A|lora_down|lora\.down)\b")
LORA_ERRORS = (OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError, ImportError, SafetensorError)
Place = tuple[str, str]  # a component of the pipeline, and the name of one of its parameters
Weights = dict[Place, Tensor]


def fuse(pipeline: Pipeline, loras: Sequence[Lora]) -> None:
    """Add LoRAs to the weights, in the order given. Raises ConfigError unless every layer of every file finds its place."""
    names = _add(pipeline, loras)
    _fuse(pipeline, names, loras)


class SourceWeights:
    """The weights that differ from source to source of the captions; the pipeline holds the plain ones at first.

    Kept in memory of the host: for each source as much as the layers that its LoRAs change, 0.26 GB for all attentions of Stable Diffusion
    v1.5's U-Net in half precision.
    """

    def __init__(self, pipeline: Pipeline, loras: Sequence[Lora]) -> None:
        """Raises ConfigError unless every layer of every file finds its place. `loras`: with a source, each."""
        self._pipeline = pipeline
        self._plain: Weights = {}
        self._of_source: dict[str, Weights] = {}
        self._current = ""
        for source in dict.fromkeys(lora.source for lora in loras):
            assert source is not None
            own = [lora for lora in loras if lora.source == source]
            names = _add(pipeline, own)
            plain = {place: weight.detach().clone() for place, weight in _changed(pipeline, names).items()}
            _fuse(pipeline, names, own)
            self._of_source[source] = {place: self._parameter(place).detach().clone() for place in plain}
            self._put(plain)
            self._plain |= plain

    @property
    def sources(self) -> frozenset[str]:
        """Those with weights of their own."""
        return frozenset(self._of_source)

    def use(self, source: str) -> bool:
        """Have the pipeline paint with a source's weights, "" for the plain ones. Returns whether a text encoder has others now."""
        if source == self._current:
            return False
        before, after = self._of_source.get(self._current, {}), self._of_source.get(source, {})
        changed = {place: self._plain[place] for place in before} | after
        self._put(changed)
        self._current = source
        return any(component.startswith("text_encoder") for component, _ in changed)

    def _put(self, weights: Weights) -> None:
        for place, weight in weights.items():
            self._parameter(place).data.copy_(weight)

    def _parameter(self, place: Place) -> Tensor:
        component, name = place
        part: torch.nn.Module = self._pipeline.components[component]
        return part.get_parameter(name)


def _add(pipeline: Pipeline, loras: Sequence[Lora]) -> list[str]:
    """Load LoRAs beside the weights. Returns: the names they have there."""
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        _add_one(pipeline, lora, name)
    return names


def _add_one(pipeline: Pipeline, lora: Lora, adapter: str) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(f"--lora: a {type(pipeline).__name__} takes none.")
    try:
        answer = pipeline.lora_state_dict(str(lora.path.parent), weight_name=lora.path.name, local_files_only=True)
        weights = answer[0] if isinstance(answer, tuple) else answer
        pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name=adapter, local_files_only=True)
    except LORA_ERRORS as error:
        if "PEFT" in str(error):
            raise ConfigError("--lora needs peft: pip install 'gift-cl[generate]'.") from error
        raise ConfigError(f"--lora {lora.path} does not fit this model: {first_line(error)}") from error
    told = sum(LORA_LAYER.search(name) is not None for name in weights)
    taken = len(_layers(pipeline, [adapter]))
    if not told or taken < told:
        raise ConfigError(f"--lora {lora.path} does not fit this model: {taken} of its {told} layers have a place in it.")


def _fuse(pipeline: Pipeline, names: Sequence[str], loras: Sequence[Lora]) -> None:
    """Into the weights: then a step costs what it did, and nothing is left to be switched."""
    pipeline.set_adapters(list(names), [lora.scale for lora in loras])
    pipeline.fuse_lora(adapter_names=list(names))
    pipeline.unload_lora_weights()


def _layers(pipeline: Pipeline, adapters: Sequence[str]) -> dict[Place, torch.nn.Module]:
    """The layers that have one of these adapters beside them, by component and name."""
    return {
        (component, name): layer
        for component, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for name, layer in part.named_modules()
        if any(adapter in getattr(layer, kind, ()) for adapter in adapters for kind in ("lora_A", "lora_embedding_A"))
    }


def _changed(pipeline: Pipeline, adapters: Sequence[str]) -> Weights:
    """The parameters below these adapters, under the names that they have without them."""
    return {
        (component, f"{name}.{parameter}"): weight
        for (component, name), layer in _layers(pipeline, adapters).items()
        for parameter, weight in layer.base_layer.named_parameters(recurse=False)  # type: ignore[union-attr]
    }
