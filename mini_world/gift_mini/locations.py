"""Where the mini world's weights lie: beside this file, in a checkout and in an installed wheel alike."""

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"


def clip_folder() -> Path:
    """Holds open_clip_config.json, open_clip_model.safetensors and the merges file that the config names relative to it."""
    return _WEIGHTS / "clip"


def stable_diffusion_folder() -> Path:
    """A folder for `StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)`."""
    return _WEIGHTS / "stable-diffusion"
