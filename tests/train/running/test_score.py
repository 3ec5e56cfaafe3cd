"""gift-train score through the command line, and runs that select by what it wrote."""

import hashlib
import io
import json
import os
import shutil
import signal
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gift_shared.errors import ConfigError, ShardError
from gift_shared.file_cache import FileCache
from gift_shared.manifests import OrderManifest
from gift_shared.parquet_files import open_output_index, read_output_index, write_index, write_rows
from gift_shared.schema import SCORES_SCHEMA
from gift_shared.scores import open_scores
from gift_shared.shards import read_image_bytes
from gift_shared.storage import open_folder
from gift_train.clip.load import load_backbone
from gift_train.data.score_rules import ScoreRules
from gift_train.data.selection import ReplaySelection, ReplayShortage, select_replay
from gift_train.data.transforms import image_transforms
from gift_train.scoring.parts import ScoreParts, shard_places

TASKS = ("colours", "stripes")


@pytest.fixture
def out(world, tmp_path):
    """The world's shards, copied; a row of each task is without an image, and captions stand that no image has."""
    out = tmp_path / "shards"
    shutil.copytree(world.root / "shards", out)
    rows = read_output_index(out)[0].to_pylist()
    for row in rows:
        if row["index"] == 4:
            row |= {"status": "black", "image_name": None, "byte_offset": None, "byte_size": None, "sha256": None, "caption": "a fox."}
    write_index(out / "index.parquet", pa.Table.from_pylist(rows, read_output_index(out)[0].schema), {})
    return out


@pytest.fixture
def score(gift_train, world):
    """A function: folder and more flags -> Outcome of scoring it by the world's model."""
    return lambda out, *more: gift_train(
        "score", "--out", out, "--clip", world.root / "model", "--device", "cpu", "--batch-size", "4", *more
    )


def decoded(out, row):
    content = read_image_bytes(out, row["shard"], row["byte_offset"], row["byte_size"], row["sha256"])
    return Image.open(io.BytesIO(content)).convert("RGB")


def plain_scores(out, model):
    """(similarity, rank) of each row of the index, one image and one caption at a time."""
    rows = read_output_index(out)[0].to_pylist()
    backbone = load_backbone(str(model), None)
    transform = image_transforms(backbone.image_settings[0], backbone.resize_settings).evaluation
    captions = sorted({row["caption"] for row in rows})
    found = []
    with torch.no_grad():
        texts = {caption: backbone.encode_texts(backbone.tokenize([caption]))[0].double() for caption in captions}
        for row in rows:
            if row["status"] != "ok":
                found.append((None, None))
                continue
            image = backbone.encode_images(backbone.place_images(transform(decoded(out, row))[None]))[0].double()
            cosines = {caption: float(image @ text) for caption, text in texts.items()}
            own = cosines[row["caption"]]
            found.append((own, sum(cosine >= own for cosine in cosines.values())))
    return found


def written(out, name="model"):
    return pq.read_table(out / f"scores/{name}.parquet")


def test_scores_are_those_of_a_plain_loop_row_for_row(score, out, world):
    outcome = score(out)
    assert outcome.code == 0, outcome.err
    table, expected = written(out), plain_scores(out, world.root / "model")
    assert table["sample_key"].equals(read_output_index(out)[0]["sample_key"])
    assert table["rank"].to_pylist() == [rank for _, rank in expected]
    assert {1, 2} < set(table["rank"].to_pylist())
    for similarity, (plain, _) in zip(table["similarity"].to_pylist(), expected, strict=True):
        assert similarity == (None if plain is None else pytest.approx(plain, abs=1e-6))
    assert "images      18 of 20 planned" in outcome.out
    assert f"rank        1 of 4 captions for {sum(rank == 1 for _, rank in expected) / 18:.1%} of the images" in outcome.out
    with open_scores(out, None) as scores:
        told = json.loads(scores.metadata["scorer"])
    assert (told["clip"], told["precision"], told["num_captions"]) == ("model", "fp32", 4)
    assert not (out / "spool").exists()


def test_a_stopped_scoring_goes_on_where_it_was_with_the_same_bytes(score, out, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "whole")
    assert score(tmp_path / "whole").code == 0
    seen, write = [], ScoreParts.write

    def write_and_be_told_to_leave(self, shard, rows):
        write(self, shard, rows)
        seen.append(shard)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ScoreParts, "write", write_and_be_told_to_leave)
    stopped = score(out)
    assert stopped.code == 75
    assert f"Stopped by SIGTERM: scores of {out} from this shard on. Nothing is lost" in stopped.err
    assert not (out / "scores").exists()
    monkeypatch.setattr(ScoreParts, "write", lambda self, shard, rows: (seen.append(shard), write(self, shard, rows)))
    assert score(out).code == 0
    assert seen == ["colours-00000", "stripes-00000"]
    assert (out / "scores/model.parquet").read_bytes() == (tmp_path / "whole/scores/model.parquet").read_bytes()
    assert score(out).code == 0
    assert len(seen) == 2


def test_workers_share_a_folder_and_whoever_is_last_joins_what_they_wrote(score, out, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "alone")
    assert score(tmp_path / "alone").code == 0
    seen, write = [], ScoreParts.write
    monkeypatch.setattr(ScoreParts, "write", lambda self, shard, rows: (seen.append(shard), write(self, shard, rows)))
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert score(out, "--name", "other").code == 0  # the only one of two that lives does all, its own share first
    assert seen == ["stripes-00000", "colours-00000"]
    assert written(out, "other").equals(written(tmp_path / "alone"))
    assert score(out, "--rank", "2", "--world-size", "2").err == "error: Rank 2 of 2 workers: expected 0 to 1.\n"


def test_loader_processes_and_size_of_batches_change_no_rank(score, out, tmp_path):
    assert score(out).code == 0
    assert score(out, "--name", "others", "--num-workers", "1", "--batch-size", "7").code == 0
    one, two = written(out), written(out, "others")
    assert one["rank"].equals(two["rank"])
    assert one["similarity"].drop_null().to_pylist() == pytest.approx(two["similarity"].drop_null().to_pylist(), abs=1e-6)


def test_a_name_belongs_to_one_scorer_and_pictures_made_again_are_scored_again(score, gift_train, out):
    assert score(out).code == 0
    refused = gift_train("score", "--out", out, "--clip", "mini", "--name", "model", "--device", "cpu")
    assert refused.code == 2
    assert f"{out}/scores/model.parquet holds scores by another CLIP (model, fp32). Give these another --name" in refused.err
    before = written(out)
    write_index(out / "index.parquet", read_output_index(out)[0], {"made": "again"})
    assert score(out).code == 0
    with open_scores(out, "model") as scores:
        assert scores.read().equals(before.replace_schema_metadata(None))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clip", "minni"), "Unknown model 'minni'. Did you mean 'mini'?"),
        (("--clip", "mini", "--name", "a b"), "--name 'a b' must match [a-z0-9_-]+."),
        (("--clip", "mini", "--rank", "1"), "--rank and --world-size belong together: give both or none."),
        (
            ("--clip", "{world}/model/open_clip_config.json"),
            "is a file without its model: give an open_clip name as --clip and the file as",
        ),
        (("--clip", "{world}/run"), "is a run folder: give the weights after one of its tasks"),
    ],
)
def test_what_cannot_score_is_one_line(gift_train, out, world, tmp_path, arguments, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    told = [argument.replace("{world}/run", str(tmp_path / "run")).replace("{world}", str(world.root)) for argument in arguments]
    outcome = gift_train("score", "--out", out, "--device", "cpu", *told)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (out / "scores").exists()


def test_a_folder_that_is_not_finished_is_refused(score, out):
    (out / "index.parquet").unlink()
    outcome = score(out)
    assert outcome.code == 2
    assert f"{out} has no index.parquet: no output folder, or not finished." in outcome.err


def test_a_run_selects_by_scores_and_refuses_to_go_on_with_others(quick_run, score, out, tmp_path, caplog):
    rules = (f"--shards={out}", "--set", "replay.max_rank=1", "--set", "steps=3")
    unscored = quick_run("gift", tmp_path / "run", *rules)
    assert unscored.code == 2
    assert unscored.err == f"error: {out} has no scores: run `gift-generate score --out {out} --clip MODEL` first.\n"
    assert score(out).code == 0
    begun = quick_run("gift", tmp_path / "run", *rules, "--stop-after", "1")
    assert begun.code == 0, begun.err
    ranks = dict(zip(written(out)["sample_key"].to_pylist(), written(out)["rank"].to_pylist(), strict=True))
    first = {task: [key for key, rank in ranks.items() if key.startswith(task) and rank == 1] for task in TASKS}
    assert f"colours: 9 usable, max_rank = 1 leaves {len(first['colours'])}; stripes: 9 usable" in caplog.text
    for task in TASKS:
        assert pq.read_table(tmp_path / f"run/replay/{task}.parquet")["sample_key"].to_pylist() == first[task]
    record = json.loads((tmp_path / "run/run.json").read_text())["shards"]["scores"]
    assert record["sha256"] == hashlib.sha256((out / "scores/model.parquet").read_bytes()).hexdigest()
    with open_scores(out, "model") as scores:
        write_rows(scores.path, list(scores.batches()), SCORES_SCHEMA, scores.metadata | {"made": "elsewhere"})
    other = quick_run("gift", tmp_path / "run", *rules)
    assert other.code == 2
    assert "holds another run: the scores by which pictures are selected (gift-generate score) are not those it began with" in other.err


def test_a_fine_tuned_checkpoint_scores(quick_run, gift_train, out, tmp_path):
    assert quick_run("finetune", tmp_path / "run", "--set", "steps=3", "--stop-after", "1").code == 0
    outcome = gift_train("score", "--out", out, "--clip", tmp_path / "run/checkpoints/task-01-colours.safetensors", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    assert len(written(out, "run_task_01_colours")) == 20


def test_scores_are_read_by_url(score, served, out, tmp_path):
    site = served(out.parent)
    order = OrderManifest(name="pair", display_name="Pair", pretraining_source="base", tasks=TASKS, recipes="mini")

    def selected(folder, scores=None):
        rules = ScoreRules(top_share=0.5, scores=scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReplayShortage)
            return select_replay(folder, order, ReplaySelection(num_images=10, captions="all", seed=0, by_score=rules))

    def remote():
        return open_folder(f"{site.url}/shards", FileCache(tmp_path / "cache"))

    with pytest.raises(ConfigError, match=r'cannot be asked which scores it has: name them, in a recipe as \[replay\] scores = "NAME"'):
        selected(remote())
    with pytest.raises(ShardError, match=rf"{site.url}/shards/scores/model.parquet is not there: run `gift-generate score --out"):
        selected(remote(), "model")
    assert score(out).code == 0
    assert selected(remote(), "model") == selected(out)


@pytest.mark.parametrize("at_once", [3, 65_536])
def test_shards_are_found_however_rows_come(out, monkeypatch, at_once):
    monkeypatch.setattr("gift_shared.parquet_files.ROWS_AT_ONCE", at_once)
    with open_output_index(out) as index:
        places = shard_places(index)
    assert [(one.name, one.first_row, one.num_rows, one.num_images) for one in places] == [
        ("colours-00000", 0, 10, 9), ("stripes-00000", 10, 10, 9),
    ]  # fmt: skip
