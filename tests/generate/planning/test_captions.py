"""Captions from class names and from files, alone and mixed."""

from collections import Counter
from pathlib import Path

import pytest

from gift_generate.planning.captions import Caption, CaptionMixture, ClassEntry, read_caption_file
from gift_generate.planning.plan_request import parse_weighted_file
from gift_shared.errors import ConfigError


def texts(path: Path) -> list[str]:
    return [caption.text for caption in read_caption_file(path)]


def test_a_text_file_gives_its_non_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "web.txt"
    path.write_text("a dog on a beach\n\n  two cups  \r\nénorme château\n", encoding="utf-8")
    assert texts(path) == ["a dog on a beach", "two cups", "énorme château"]
    assert read_caption_file(path)[0] == Caption("a dog on a beach", "file:web", None, None)


def test_a_mixture_draws_by_weight(tmp_path: Path) -> None:
    path = tmp_path / "web.txt"
    path.write_text("from a file\n")
    mixture = CaptionMixture(seed=1, class_name_weight=1.0, files=[(read_caption_file(path), 3.0)])
    pool = [ClassEntry("cats", "tabby", 0, ("a {}.",))]
    drawn = [mixture.draw(pool).source for _ in range(4000)]
    assert 0.72 < drawn.count("file:web") / len(drawn) < 0.78  # 0.75 expected, deviation 0.007


def test_weights_are_read_from_the_argument() -> None:
    assert parse_weighted_file("web.txt").weight == 1.0
    assert parse_weighted_file("web=2.txt=0.25").path == Path("web=2.txt")
    with pytest.raises(ConfigError, match="expected FILE or FILE=WEIGHT with a weight above 0"):
        parse_weighted_file("web.txt=-1")


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing would be left to draw from"):
        CaptionMixture(seed=1, class_name_weight=0.0, files=[])


def test_each_class_name_keeps_its_share_with_all_templates() -> None:
    """A name with 3 templates is drawn as often as one with 1, and each template of it as often as the others."""
    pool = [ClassEntry("cats", "tabby", 0, ("a {}.", "the {}.", "one {}.")), ClassEntry("cars", "van", 0, ("a {} car.",))]
    mixture = CaptionMixture(seed=1, class_name_weight=1.0, files=[])
    counts = Counter(mixture.draw(pool).text for _ in range(6000))
    assert set(counts) == {"a tabby.", "the tabby.", "one tabby.", "a van car."}
    assert 2850 < counts["a van car."] < 3150  # 3000 expected, deviation 39
    assert all(900 < counts[text] < 1100 for text in ("a tabby.", "the tabby.", "one tabby."))  # 1000, deviation 29


@pytest.mark.parametrize("sampling", ["shuffled", "in-order"])
def test_no_line_comes_again_before_all_were_drawn(tmp_path: Path, sampling: str) -> None:
    path = tmp_path / "web.txt"
    path.write_text("".join(f"line {number}\n" for number in range(20)))
    mixture = CaptionMixture(1, 1.0, [(read_caption_file(path), 1.0)], sampling)
    pool = [ClassEntry("cats", "tabby", 0, ("a {}.",))]
    lines = [text for text in (mixture.draw(pool).text for _ in range(200)) if text != "a tabby."]
    in_order = [f"line {number}" for number in range(20)]
    assert len(lines) > 40
    assert sorted(lines[:20]) == sorted(lines[20:40]) == sorted(in_order)
    assert (lines[:20] == in_order) == (sampling == "in-order")
