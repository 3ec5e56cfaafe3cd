"""Which family a pipeline class belongs to. A pipeline that is not listed is asked by its public call."""

from gift_generate.rendering.families.base import Family
from gift_generate.rendering.families.generic import Generic
from gift_generate.rendering.families.transformer import Flux, PixArt, Sana, StableDiffusion3
from gift_generate.rendering.families.unet import LatentConsistency, StableDiffusion, StableDiffusionXL

FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": LatentConsistency,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "SanaPipeline": Sana,
}


def family_of(pipeline_class: str) -> type[Family]:
    """By the class's name, as a model_index.json has it."""
    return FAMILIES.get(pipeline_class, Generic)
