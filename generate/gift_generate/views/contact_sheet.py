"""A contact sheet: a few pictures per task or per class with their captions beneath, as one PNG to look at."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from gift_generate.output.folder import OutputFolder, open_output
from gift_shared.atomic import atomic_path
from gift_shared.decoding import decode_rgb
from gift_shared.errors import ConfigError, ShardError, unknown_name
from gift_shared.schema import SampleStatus
from gift_shared.scores import open_scores
from gift_shared.shards import read_image_bytes

T = TypeVar("T")
GROUPINGS = ("task", "class")
SORTINGS = ("plan", "similarity", "rank")
SCORED = ("similarity", "rank")  # columns of scores
NAMING = ["task", "source", "class_name"]  # columns that groups are named by
PICTURE = 144  # side of a picture on the sheet, pixels
MARGIN = 10
CAPTION_LINES = 3
FONT_SIZE = 12
LINE = FONT_SIZE + 3
INK, PAPER, HEADING = (30, 30, 30), (255, 255, 255), (70, 70, 70)


@dataclass(frozen=True, kw_only=True)
class SheetRequest:
    """What goes on the sheet. `only` keeps one task, or one class, as `by` says.

    sort_by: `plan`, pictures at even distances as they were planned; `similarity` or `rank`, from the best picture of a group to its worst,
    at even distances, by the folder's scores, which `scores` names where there are several.
    """

    by: str = "task"
    pictures_per_group: int = 8
    most_groups: int = 40
    only: str | None = None
    sort_by: str = "plan"
    scores: str | None = None

    def __post_init__(self) -> None:
        if self.by not in GROUPINGS:
            raise ConfigError(unknown_name("grouping", self.by, GROUPINGS))
        if self.sort_by not in SORTINGS:
            raise ConfigError("--sort-by: " + unknown_name("sorting", self.sort_by, SORTINGS))
        if self.scores is not None and self.sort_by == "plan":
            raise ConfigError("--scores goes with --sort-by similarity or rank.")
        if self.pictures_per_group < 1 or self.most_groups < 1:
            raise ConfigError("A sheet needs at least one picture a group and one group.")

    @property
    def is_scored(self) -> bool:
        """Whether scores are needed."""
        return self.sort_by != "plan"


@dataclass(frozen=True)
class Tile:
    """What `framed` makes of an image and what stands beneath it; None leaves its place empty."""

    image: Image.Image | None
    caption: str


def draw_sheet(out: Path, request: SheetRequest) -> tuple[Image.Image, int]:
    """The sheet, and how many groups found no room on it. Raises ShardError if there is no image to show yet."""
    groups, num_groups = _groups(out, request)
    tiles = {name: [Tile(framed(_image(out, row)), _told(row)) for row in rows] for name, rows in groups.items()}
    return draw_tiles(tiles), num_groups - len(groups)


def draw_tiles(groups: Mapping[str, Sequence[Tile]]) -> Image.Image:
    """A line of tiles for each group, below its name."""
    columns = max(len(tiles) for tiles in groups.values())
    cell_width, cell_height = PICTURE + MARGIN, PICTURE + CAPTION_LINES * LINE + MARGIN
    heading = LINE + 8
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, len(groups) * (cell_height + heading) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    # Matplotlib's font and not the imaging library's: it has Greek, Cyrillic and the signs that captions hold.
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font, bold = (ImageFont.truetype(str(fonts / name), FONT_SIZE) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
    top = MARGIN
    for name, tiles in groups.items():
        draw.text((MARGIN, top), name, font=bold, fill=HEADING)
        for column, tile in enumerate(tiles):
            corner = (MARGIN + column * cell_width, top + heading)
            if tile.image is None:
                draw.rectangle((*corner, corner[0] + PICTURE - 1, corner[1] + PICTURE - 1), outline=HEADING)
            else:
                sheet.paste(tile.image, corner)
            lines = _wrapped(tile.caption, font, PICTURE)
            draw.multiline_text((corner[0], corner[1] + PICTURE + 2), "\n".join(lines), font=font, fill=INK, spacing=1)
        top += cell_height + heading
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _groups(out: Path, request: SheetRequest) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The rows to draw of each group that has room, and how many groups there are.

    Rows are gone through twice, to count and to choose: those of a large folder have no room in memory.
    """
    output, class_names = open_output(out), dict[str, str | None]()
    keys: dict[str, array[float]] = {}  # by group, what each of its pictures is sorted by
    for rows in _usable_rows(output, request):
        for row in rows.select([*NAMING, *SCORED] if request.is_scored else NAMING).to_pylist():
            name = _group_name(row, request.by)
            keys.setdefault(name, array("d")).append(_sort_key(row, request.sort_by) if request.is_scored else 0.0)
            class_names.setdefault(name, row["class_name"])
    if not keys:
        raise ShardError(f"{out} holds no usable image to show yet. `gift-generate status --out {out}` tells how far it is.")
    names = list(keys)
    if request.only is not None:
        names = [name for name in keys if request.only in (name, class_names[name])]
        if not names:
            raise ConfigError(unknown_name(request.by, request.only, keys))
    wanted = {name: _wanted(keys[name], request) for name in names[: request.most_groups]}
    return _chosen(output, request, wanted), len(names)


def _wanted(keys: Sequence[float], request: SheetRequest) -> list[int]:
    """The numbers of the pictures of a group that are shown, in the order shown."""
    if not request.is_scored:
        return spread(range(len(keys)), request.pictures_per_group)
    best_first = sorted(range(len(keys)), key=keys.__getitem__)
    count = min(request.pictures_per_group, len(keys))
    return [best_first[position * (len(keys) - 1) // max(count - 1, 1)] for position in range(count)]


def _chosen(output: OutputFolder, request: SheetRequest, wanted: Mapping[str, Sequence[int]]) -> dict[str, list[dict[str, Any]]]:
    """Of each group the rows whose numbers among its own are wanted, in that order."""
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in wanted}
    seen: Counter[str] = Counter()
    sets = {name: set(numbers) for name, numbers in wanted.items()}
    for rows in _usable_rows(output, request):
        for place, row in enumerate(rows.select(NAMING).to_pylist()):
            name = _group_name(row, request.by)
            if seen[name] in sets.get(name, ()):
                found[name][seen[name]] = rows.slice(place, 1).to_pylist()[0]
            seen[name] += 1
    return {name: [found[name][number] for number in numbers] for name, numbers in wanted.items()}


def _usable_rows(output: OutputFolder, request: SheetRequest) -> Iterator[pa.Table]:
    """Rows with an image, of one shard after the other; with their scores if pictures are sorted by them."""
    if not request.is_scored:
        for _, rows in output.complete_rows():
            yield _usable(rows)
        return
    with open_scores(output.path, request.scores) as scores:
        for shard, rows in output.complete_rows():
            judged = scores.slice(shard.first_row, shard.num_rows)
            for column in SCORED:
                rows = rows.append_column(column, judged[column])
            yield _usable(rows.filter(pc.and_(*(pc.is_valid(judged[column]) for column in SCORED))))


def _sort_key(row: Mapping[str, Any], sort_by: str) -> float:
    """Small for a good picture. Of equal ranks the more similar one is better: a cosine moves it by less than one rank."""
    by_similarity = -float(row["similarity"])
    return by_similarity if sort_by == "similarity" else row["rank"] + by_similarity / 4


def _told(row: Mapping[str, Any]) -> str:
    """What stands beneath a picture: its caption, and first its scores if it was chosen by them."""
    return f"{row['similarity']:.3f}, rank {row['rank']}: {row['caption']}" if "similarity" in row else str(row["caption"])


def _usable(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["status"], SampleStatus.OK))


def _group_name(row: dict[str, Any], by: str) -> str:
    if by == "task":
        return str(row["task"])
    return f"{row['source']}: {row['class_name']}" if row["class_name"] is not None else str(row["source"])


def spread(rows: Sequence[T], count: int) -> list[T]:
    """`count` rows at even distances, so that a sheet shows more than the beginning."""
    if len(rows) <= count:
        return list(rows)
    return [rows[position * len(rows) // count] for position in range(count)]


def _image(out: Path, row: dict[str, Any]) -> Image.Image:
    content = read_image_bytes(out, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
    image: Image.Image = decode_rgb(content, f"{row['image_name']} in {row['shard']}.tar", ShardError)
    return image


def framed(image: Image.Image) -> Image.Image:
    """The image, of any size, in the middle of a square of PICTURE pixels."""
    # Small pictures are enlarged by whole factors with hard edges: what one sees is what the model sees.
    factor = PICTURE // max(image.size)
    if factor >= 2:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    else:
        image = image.copy()
        image.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (PICTURE, PICTURE), PAPER)
    square.paste(image, ((PICTURE - image.width) // 2, (PICTURE - image.height) // 2))
    return square


def _wrapped(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in caption.split():
        while font.getlength(word) > width:  # a word wider than the picture is broken, not lost
            cut = next(size for size in range(len(word), 0, -1) if size == 1 or font.getlength(word[:size]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
            if not word:
                break
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    lines = [line for line in lines if line]
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], lines[CAPTION_LINES - 1][:-1] + "…"]
    return lines
