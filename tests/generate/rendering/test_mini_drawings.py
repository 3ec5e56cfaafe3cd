"""The control's renderer: real drawings for the mini world's captions."""

import numpy as np
import pytest

from gift_generate.rendering.factory import open_renderer
from gift_generate.rendering.model_options import ModelOptions
from gift_generate.rendering.renderer import RenderJob
from gift_mini.drawing import draw_web
from gift_shared.errors import ConfigError


def test_a_caption_is_drawn_as_its_class_and_seed_say() -> None:
    renderer = open_renderer(ModelOptions(model="mini-drawings"))
    jobs = [RenderJob("the flag of Japan.", 3, 7.5, 12), RenderJob("the letter Q.", 4, 7.5, 12), RenderJob("the letter Q.", 5, 7.5, 12)]
    flag, letter, other = (picture.pixels for picture in renderer.render(jobs))
    assert flag.shape == (32, 32, 3)
    assert np.array_equal(flag, np.asarray(draw_web("mini_flags", "Japan", 3)))
    assert not np.array_equal(letter, other)


def test_a_caption_outside_the_mini_world_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot draw 'a photo of a tench.': it knows the mini world's class names only"):
        open_renderer(ModelOptions(model="mini-drawings")).render([RenderJob("a photo of a tench.", 1, 7.5, 12)])
