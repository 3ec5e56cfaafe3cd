"""The renderer that options name. torch and diffusers are imported only when a real model is asked for."""

from gift_generate.rendering.flat_color import FLAT_COLOR, FlatColorRenderer
from gift_generate.rendering.renderer import ModelOptions, Renderer
from gift_shared.errors import ConfigError, unknown_name

MINI_DRAWINGS = "mini-drawings"
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "float16", "bfloat16")
GENERATOR_DEVICES = ("cpu", "device")


def open_renderer(options: ModelOptions) -> Renderer:
    """Load the model that the options name. Raises ConfigError before any image is made."""
    for kind, value, valid in (
        ("device", options.device.partition(":")[0], DEVICES),
        ("dtype", options.dtype, DTYPES),
        ("generator device", options.generator_device, GENERATOR_DEVICES),
    ):
        if value not in valid:
            raise ConfigError(unknown_name(kind, value, valid))
    if options.batch_size is not None and options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, found {options.batch_size}.")
    if options.cpu_threads < 1:
        raise ConfigError(f"--threads must be at least 1, found {options.cpu_threads}.")
    for side in (options.height, options.width):
        if side is not None and (side < 8 or side % 8):
            raise ConfigError(f"--height and --width must be multiples of 8 pixels, found {side}.")
    if not 0 < options.guidance_until <= 1:
        raise ConfigError(f"--guidance-until must be above 0 and at most 1, found {options.guidance_until:g}.")
    if options.feature_interval < 1:
        raise ConfigError(f"--feature-interval must be at least 1, found {options.feature_interval}.")
    if options.feature_interval > 1 and options.is_compiled:
        raise ConfigError("--feature-interval and --compile do not go together: a compiled U-Net runs whole. Leave one of them out.")
    if options.model == FLAT_COLOR:
        return FlatColorRenderer(batch_size=options.batch_size or 16, height=options.height or 64, width=options.width or 64)
    if options.model == MINI_DRAWINGS:
        from gift_generate.rendering.mini_drawings import DrawingRenderer

        return DrawingRenderer()
    try:
        from gift_generate.rendering.stable_diffusion import StableDiffusionRenderer  # torch and diffusers take seconds to import
    except ModuleNotFoundError as error:
        raise ConfigError(f"Rendering with {options.model} needs {error.name}: pip install 'gift-cl[generate]'.") from error
    return StableDiffusionRenderer(options)
