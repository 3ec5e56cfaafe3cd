"""The size of a model's images in pixels: as asked for, or its own."""

from gift_generate.rendering.families.base import Family, Size
from gift_generate.rendering.model_options import ModelOptions
from gift_shared.errors import ConfigError


def image_size(family: Family, options: ModelOptions) -> Size:
    """In pixels, as asked or the model's own; (0, 0) for a pipeline that takes none. Raises ConfigError if there is no telling."""
    step = family.size_step
    asked = (options.height, options.width)
    if not family.takes_size:
        if any(asked):
            raise ConfigError(f"--height and --width: a {type(family.pipeline).__name__} takes no size; leave them out.")
        return 0, 0
    for side in asked:
        if side is not None and side % step:
            raise ConfigError(f"--height and --width must be multiples of {step} pixels with this model, found {side}.")
    own = family.own_size
    if own is None and not all(asked):
        raise ConfigError(f"{options.model} does not say for which size it was made (its sample_size is null): give --height and --width.")
    height, width = own or (0, 0)
    return options.height or height, options.width or width
