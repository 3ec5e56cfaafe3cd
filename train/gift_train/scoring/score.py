"""Scoring a folder, top to bottom: encode the plan's captions, go through the shards that nobody has scored, put the parts together."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from gift_shared.errors import ConfigError
from gift_shared.launchers import local_rank_from, number_from
from gift_shared.parquet_files import RowFile, open_output_index
from gift_shared.preemption import PreemptionNotice
from gift_shared.progress import Progress
from gift_shared.schema import SCORES_SCHEMA, SampleStatus
from gift_shared.score_options import ScoreOptions
from gift_shared.scores import SCORER, file_sha256, open_scores
from gift_train.data.batches import BatchOrder, Pass, stack_images, streams_in_turn
from gift_train.data.loader import Loading, resolved_loading
from gift_train.data.replay import ReplayDataset
from gift_train.data.transforms import image_transforms
from gift_train.devices import look_around
from gift_train.scoring.fit import Candidates, encode_candidates, similarity_and_rank
from gift_train.scoring.parts import ScoreParts, ShardPlace, shard_places
from gift_train.scoring.scorer import Scorer, load_scorer, name_of

IMAGES_OF_A_GROUP = 16_384  # of shards that are loaded one after the other: what loader processes are started once for
Tell = Callable[[str], None]


def score(options: ScoreOptions, notice: PreemptionNotice, tell: Tell) -> None:
    """Write OUT/scores/<name>.parquet, with every other worker at the folder; begun again, it goes on.

    Raises: ConfigError for options that do not fit, ShardError for a folder that is not finished or not sound, Preempted if told to leave.
    """
    rank, world_size, device = _place(options)
    name = name_of(options)
    with open_output_index(options.out) as index:
        shards = shard_places(index)
        scorer = load_scorer(options, device)
        parts = ScoreParts(options.out, name, scorer.record, file_sha256(index.path))
        if not parts.is_whole():
            captions = _distinct_captions(index)
            work = _Work(options, index, scorer, parts, captions)
            work.do(_own_first(shards, rank, world_size), notice)
            if not parts.is_whole():
                parts.join(shards, len(captions))
        parts.clear()
    if Progress.is_shown:
        for line in _summary(options, name):
            tell(line)


@dataclass(frozen=True)
class _Work:
    """What all shards are scored with."""

    options: ScoreOptions
    index: RowFile
    scorer: Scorer
    parts: ScoreParts
    captions: Sequence[str]

    def do(self, shards: Sequence[ShardPlace], notice: PreemptionNotice) -> None:
        """Score those of the shards that nobody has scored when their turn comes."""
        there = {shard.name for shard in shards if self.parts.has(shard.name)}
        if len(there) == len(shards):
            return
        done = sum(shard.num_images for shard in shards if shard.name in there)
        self.scorer.backbone.warn_of_long(self.captions)
        candidates = encode_candidates(self.scorer.backbone, self.captions)
        loading = resolved_loading(self.options.num_workers, None, self.scorer.backbone.device)
        with Progress("score", sum(shard.num_images for shard in shards), "image", done=done) as progress:
            for group in _groups([shard for shard in shards if shard.name not in there]):
                if self.parts.is_whole():  # another worker has put all together
                    return
                left = [shard for shard in group if not self.parts.has(shard.name)]
                progress.advance(sum(shard.num_images for shard in group if shard not in left))
                self._score(left, candidates, loading, progress, notice)

    def _score(
        self, shards: Sequence[ShardPlace], candidates: Candidates, loading: Loading, progress: Progress, notice: PreemptionNotice
    ) -> None:
        backbone = self.scorer.backbone
        transform = image_transforms(backbone.image_settings[0], backbone.resize_settings).evaluation
        rows = {shard.name: self.index.slice(shard.first_row, shard.num_rows) for shard in shards}
        usable = {name: table.filter(pc.equal(table["status"], SampleStatus.OK)) for name, table in rows.items()}
        passes = []
        for name, table in usable.items():
            order = BatchOrder(num_samples=len(table), batch_size=self.options.batch_size, seed=0, name=f"score/{name}", is_shuffled=False)
            passes.append(
                Pass(dataset=ReplayDataset(self.options.out, table, transform, 0), order=order, positions=range(order.batches_per_epoch))
            )
        with streams_in_turn(passes, stack_images, loading) as streams:
            for name, batches in zip(usable, streams, strict=True):
                scores = self._of_shard(usable[name]["caption"].to_pylist(), batches, candidates, progress, notice)
                self.parts.write(name, _as_rows(rows[name], *scores))

    @torch.no_grad()
    def _of_shard(
        self, captions: Sequence[str], batches: Iterator[Tensor], candidates: Candidates, progress: Progress, notice: PreemptionNotice
    ) -> tuple[list[float], list[int]]:
        """Similarity and rank of each image of a shard."""
        backbone = self.scorer.backbone
        own = torch.tensor([candidates.number_of[caption] for caption in captions], dtype=torch.long, device=backbone.device)
        similarities: list[float] = []
        ranks: list[int] = []
        for images in batches:
            notice.obey(f"scores of {self.options.out} from this shard on")
            features = backbone.encode_images(backbone.place_images(images))
            start = len(ranks)
            similarity, rank = similarity_and_rank(features, candidates.features, own[start : start + len(features)])
            similarities += similarity.tolist()
            ranks += rank.tolist()
            progress.advance(len(features))
        return similarities, ranks


def _place(options: ScoreOptions) -> tuple[int, int, str]:
    """Rank, number of workers, and the device: of processes that a launcher started each takes its own accelerator. Raises ConfigError."""
    if options.rank is not None and options.world_size is not None:
        rank, world_size, device = options.rank, options.world_size, options.device
    else:
        world_size = number_from(os.environ, "WORLD_SIZE", "SLURM_NTASKS", default=1)
        rank = number_from(os.environ, "RANK", "SLURM_PROCID", default=0)
        device = options.device
        if world_size > 1 and device in ("auto", "cuda") and (index := look_around(device).index) is not None:
            device = f"cuda:{index}"
        Progress.is_shown = local_rank_from(os.environ, default=0) == 0  # processes of one machine write to one terminal
    if not 0 <= rank < world_size:
        raise ConfigError(f"Rank {rank} of {world_size} workers: expected 0 to {world_size - 1}.")
    return rank, world_size, device


def _own_first(shards: Sequence[ShardPlace], rank: int, world_size: int) -> list[ShardPlace]:
    """All shards: this worker's share, then the next workers', each from its end, where its owner comes last."""
    order = list(shards[rank::world_size])
    for further in range(1, world_size):
        order += shards[(rank + further) % world_size :: world_size][::-1]
    return order


def _distinct_captions(index: RowFile) -> list[str]:
    """Every caption of the plan once, whether it has an image or not, in the order in which they first stand."""
    found: dict[str, None] = {}
    for rows in index.batches(["caption"]):
        found.update(dict.fromkeys(rows["caption"].unique().to_pylist()))
    return list(found)


def _groups(shards: Sequence[ShardPlace]) -> Iterator[list[ShardPlace]]:
    group: list[ShardPlace] = []
    for shard in shards:
        group.append(shard)
        if sum(one.num_images for one in group) >= IMAGES_OF_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _as_rows(rows: pa.Table, similarities: Sequence[float], ranks: Sequence[int]) -> pa.Table:
    """SCORES_SCHEMA rows of a shard: null where there is no image."""
    is_ok = pc.equal(rows["status"], SampleStatus.OK).to_numpy()
    columns: Mapping[str, tuple[Sequence[float], str]] = {"similarity": (similarities, "float32"), "rank": (ranks, "int32")}
    arrays = []
    for values, kind in columns.values():
        every = np.zeros(len(rows), dtype=kind)
        every[is_ok] = values
        arrays.append(pa.array(every, mask=~is_ok))
    return pa.table([rows["sample_key"], *arrays], schema=SCORES_SCHEMA)


def _summary(options: ScoreOptions, name: str) -> Iterator[str]:
    """What people want to see first. The scores are read some at a time."""
    total = np.zeros(2)  # sum, and number, of similarities
    num_best = num_rows = 0
    least, most = np.inf, -np.inf
    with open_scores(options.out, name) as scores:
        for rows in scores.batches(["similarity", "rank"]):
            num_rows += len(rows)
            found = rows["similarity"].drop_null().to_numpy()
            num_best += int(np.count_nonzero(rows["rank"].drop_null().to_numpy() == 1))
            if len(found):
                total += found.sum(dtype=np.float64), len(found)
                least, most = min(least, float(found.min())), max(most, float(found.max()))
        path = scores.path
        told = json.loads(scores.metadata[SCORER])
    num_images = int(total[1])
    yield f"scores      {path}"
    yield f"images      {num_images:,} of {num_rows:,} planned"
    if num_images:
        yield f"similarity  {total[0] / num_images:.3f} on average, {least:.3f} to {most:.3f}"
        yield f"rank        1 of {told['num_captions']:,} captions for {num_best / num_images:.1%} of the images"
