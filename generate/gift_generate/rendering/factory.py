"""The renderer that options name, and the only place that knows all of them. torch and diffusers only when a real model is asked for."""

from gift_generate.rendering.flat_color import FLAT_COLOR, FlatColorRenderer
from gift_generate.rendering.mini_drawings import MINI_DRAWINGS, DrawingRenderer
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import Renderer
from gift_shared.errors import ConfigError


def open_renderer(options: ModelOptions) -> Renderer:
    """Load the model that the options name. Raises ConfigError before any image is made."""
    if options.model == FLAT_COLOR:
        return FlatColorRenderer(batch_size=options.batch_size or 16, height=options.height or 64, width=options.width or 64)
    if options.model == MINI_DRAWINGS:
        return DrawingRenderer()
    try:
        from gift_generate.rendering.diffusers_renderer import DiffusersRenderer  # torch and diffusers take seconds to import
    except ModuleNotFoundError as error:
        raise ConfigError(f"Rendering with {options.model} needs {error.name}: pip install 'gift-cl[generate]'.") from error
    return DiffusersRenderer(options)
