"""The report reads run folders and nothing else; malicious captions are shown, never run."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gift_shared.errors import ConfigError
from gift_train.report.charts import Axis
from gift_train.report.command import report_command
from gift_train.report.page import write_page
from gift_train.report.published import printed_rows
from gift_train.report.runs import load_runs
from gift_train.report.summary_table import summary_rows


def page(runs: Path, out: Path) -> str:
    report_command([runs], out, as_json=False)
    return (out / "mini" / "index.html").read_text()


def page_alone(runs: Path, out: Path) -> str:
    """The page without the pictures beside it, which take longer."""
    found = load_runs([runs])
    write_page(out / "index.html", found, summary_rows(found), [])
    return (out / "index.html").read_text()


class Elements(HTMLParser):
    """Every element with its attributes and the text right inside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data):
        if self.found:
            self.found[-1][2].append(data)


def test_seeds_are_averaged_and_compared_to_the_l2_baseline(runs: Path) -> None:
    gift, l2 = summary_rows(load_runs([runs]))
    assert (gift.recipe, gift.seeds, gift.mean["last"]) == ("gift", (1, 2), 72.0)
    assert gift.deviation["last"] == pytest.approx(np.sqrt(8.0))
    assert gift.difference["last"] == 12.0
    assert l2.deviation["last"] is None
    assert l2.difference["last"] == 0.0


def test_report_writes_table_and_page_beside_its_parts(runs: Path, tmp_path: Path) -> None:
    text = report_command([runs], tmp_path / "report", as_json=False)
    assert "72.0 ± 2.8 (+12.0)" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "table.csv").read_text())))
    assert [row["recipe"] for row in rows] == ["gift", "l2"]
    assert float(rows[0]["last_minus_l2"]) == 12.0
    folder = tmp_path / "report" / "mini"
    for name in ("stability_plasticity", "forgetting_curves", "accuracy_matrices", "training_curves"):
        assert Image.open(folder / f"{name}.png").width > 200
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")
    accuracy = list(csv.DictReader((folder / "accuracy.csv").open()))
    last = [row for row in accuracy if (row["recipe"], row["seed"], row["after"]) == ("gift", "2", "flags")]
    assert [(row["dataset"], float(row["percent"])) for row in last] == [("shapes", 74.0), ("digits", 74.0), ("flags", 74.0)]
    training = list(csv.DictReader((folder / "training.csv").open()))
    assert {row["quantity"] for row in training} == {
        "cross_entropy", "distillation", "distance_from_task_start", "fisher_half_share", "learning_rate",
    }  # fmt: skip
    assert {"recipe": "l2", "task": "digits", "step": "5", "quantity": "distillation", "value": "0.45"} in training


def test_every_number_of_the_matrix_answers_when_pointed_at(runs: Path, tmp_path: Path) -> None:
    elements = Elements(page(runs, tmp_path / "report")).found
    tips = [attributes["data-tip"] for tag, attributes, _ in elements if tag == "td" and "data-tip" in attributes]
    assert len(tips) == 2 * 4 * 3
    assert "flags, zero-shot: 60.00 %" in tips
    assert any(tip.startswith("shapes, after flags: 72.00 %; +42.00 against zero-shot, ") for tip in tips)


def test_a_table_has_a_row_for_each_label_space_that_a_run_was_evaluated_in(runs_in_three_spaces: Path, tmp_path: Path) -> None:
    lines = report_command([runs_in_three_spaces], tmp_path / "report", as_json=False).splitlines()
    assert lines[0].split() == ["Method", "label", "space", "Transfer", "Avg.", "Last", "Forgetting", "seeds"]
    assert [line.split()[:2] for line in lines[2:5]] == [["gift", "union-all"], ["gift", "known"], ["gift", "union-seen"]]
    # Last of gift in known is 70 and 71, that of l2 in known 72.
    assert "70.5 ± 0.7 (-1.5)" in lines[3]
    assert "| gift | union-seen | 45.0 ± 0.0 (+0.0) | 55.5 ± 0.7 (-1.5) |" in (tmp_path / "report/table.md").read_text()
    rows = list(csv.DictReader((tmp_path / "report/table.csv").open()))
    assert [(row["recipe"], row["label_space"], float(row["last"])) for row in rows] == [
        ("gift", "union-all", 72.0), ("gift", "known", 70.5), ("gift", "union-seen", 65.5),
        ("l2", "union-all", 60.0), ("l2", "known", 72.0), ("l2", "union-seen", 67.0),
    ]  # fmt: skip
    accuracy = list(csv.DictReader((tmp_path / "report/mini/accuracy.csv").open()))
    assert {row["label_space"] for row in accuracy} == {"union-all", "known", "union-seen"}
    assert [float(row["percent"]) for row in accuracy if (row["recipe"], row["label_space"], row["after"]) == ("l2", "known", "flags")] == [
        72.0
    ] * 3


def test_page_shows_each_method_in_every_label_space(runs_in_three_spaces: Path, tmp_path: Path) -> None:
    html = page_alone(runs_in_three_spaces, tmp_path / "report")
    elements = Elements(html).found
    assert [attributes["data-show"] for tag, attributes, _ in elements if "data-show" in attributes] == [
        "union-all",
        "known",
        "union-seen",
        "",
    ]
    spaces = [attributes["data-space"] for _, attributes, _ in elements if "data-space" in attributes]
    assert spaces == ["union-all", "known", "union-seen"] * 2  # gift and l2
    table = html[html.index('id="spaces"') : html.index('id="matrix"')]
    gift = re.sub(r"<[^>]*>|\s+", " ", table[table.index('<th scope="row">gift') : table.index('<th scope="row">l2')])
    assert " ".join(gift.split()).startswith(
        "gift 40.0 ± 0.0 (+0.0) 50.0 ± 0.0 (+0.0) 72.0 ± 2.8 (+12.0) 50.0 ± 0.0 (+0.0) 60.5 ± 0.7 (-1.5)"
    )


def test_runs_that_know_one_label_space_are_shown_without_a_word_of_it(runs: Path, tmp_path: Path) -> None:
    assert "label space" not in report_command([runs], None, as_json=False)
    html = page_alone(runs, tmp_path / "report")
    assert 'id="spaces"' not in html
    assert "data-show=" not in html


def test_class_incremental_cells_that_do_not_count_are_drawn_as_such(class_incremental_runs: Path, tmp_path: Path) -> None:
    html = page_alone(class_incremental_runs, tmp_path / "report")
    cells = [(attributes, "".join(text)) for tag, attributes, text in Elements(html).found if tag == "td" and "data-tip" in attributes]
    out = [(attributes["data-tip"], text.strip()) for attributes, text in cells if attributes.get("class") == "out"]
    assert len(out) == 2 * (3 + 3)  # of each recipe the zero-shot row, and what was not learned yet
    assert all(text == "" and "not learned yet" in tip for tip, text in out)
    assert ("digits, after shapes: 1.00 %; not learned yet, which this protocol does not count", "") in out
    assert any(attributes["data-tip"] == "shapes, after flags: 30.00 %; -60.00 since it was learned" for attributes, _ in cells)
    heading = html[html.index("<thead>") : html.index("</thead>")]
    assert "Transfer" not in heading
    assert 'id="balance"' not in html


def test_class_incremental_curve_is_over_all_images_of_the_classes_so_far(class_incremental_runs: Path, tmp_path: Path) -> None:
    tips = re.findall(r'data-tip="(l2, after [^"]*)"', page_alone(class_incremental_runs, tmp_path / "report"))
    # Of 300 images 60 % of 100 and 75 % of 200 are right; of 600 30 % of 100, 60 % of 200 and 70 % of 300.
    assert tips[:3] == ["l2, after shapes: 90.00", "l2, after digits: 70.00", "l2, after flags: 60.00"]


def test_many_tasks_have_few_ticks_and_narrow_cells(tmp_path: Path, save_run) -> None:
    save_run(tmp_path / "runs" / "l2", "l2", datasets=[f"step_{number:02d}" for number in range(1, 51)])
    html = page_alone(tmp_path / "runs", tmp_path / "report")
    assert 'class="heat dense upright"' in html
    assert "step_01 → step_02 → step_03 → … → step_50." in html
    chart = html[html.index('aria-label="step_07"') :]
    ticks = re.findall(r'text-anchor="middle">(\d+)</text>', chart[: chart.index("</svg>")])
    assert ticks == ["0", "5", "10", "15", "20", "25", "30", "35", "40", "45", "50"]


def test_page_needs_no_network_and_runs_one_script(runs_with_pictures: Path, tmp_path: Path) -> None:
    html = page(runs_with_pictures, tmp_path / "report")
    elements = Elements(html).found
    assert sum(tag == "script" for tag, _, _ in elements) == 1
    links = [value for _, attributes, _ in elements for name, value in attributes.items() if name in ("src", "href", "action")]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not any(name.startswith("on") for _, attributes, _ in elements for name in attributes)
    policy = next(attributes["content"] for tag, attributes, _ in elements if attributes.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)


def test_captions_are_shown_as_they_are(runs_with_pictures: Path, tmp_path: Path) -> None:
    html = page(runs_with_pictures, tmp_path / "report")
    captions = pq.read_table(runs_with_pictures / "gift-1/replay/shapes.parquet")["caption"].to_pylist()
    shown = ["".join(text).strip() for tag, attributes, text in Elements(html).found if attributes.get("class") == "caption"]
    assert {caption.strip() for caption in captions} <= set(shown)
    assert "<script>document" not in html


def test_gallery_tells_how_the_model_saw_an_image_before_and_after(runs_with_pictures: Path, tmp_path: Path) -> None:
    html = page(runs_with_pictures, tmp_path / "report")
    fit = pq.read_table(runs_with_pictures / "gift-1/diagnostics/replay-01-shapes.parquet").to_pylist()[0]
    assert f"{100 * fit['probability_before']:.0f} → {100 * fit['probability_after']:.0f} %" in html
    assert f"{fit['similarity_before']:.2f} → {fit['similarity_after']:.2f}" in html
    assert "taught most" in html
    assert "one of 17" in html
    assert 'data-tip="synthetic: ' in html


def test_a_run_without_diagnostics_or_shards_is_reported_all_the_same(runs: Path, tmp_path: Path) -> None:
    html = page(runs, tmp_path / "report")
    assert 'id="gallery"' not in html
    assert 'id="forgotten"' not in html


def test_an_order_of_one_task_has_no_transfer_and_is_reported(tmp_path: Path, save_run) -> None:
    run = save_run(tmp_path / "runs" / "l2", "l2", datasets=["shapes"])
    summary = json.loads((run / "summary.json").read_text()) | {"transfer": None, "forgetting": None}
    (run / "summary.json").write_text(json.dumps(summary))
    assert report_command([run], None, as_json=False).splitlines()[-1].split() == ["l2", "-", "50.0", "70.0", "-", "1"]
    assert 'id="balance"' not in page(tmp_path / "runs", tmp_path / "report")


@pytest.mark.slow
def test_page_stays_small_however_much_there_is_to_show(tmp_path: Path, save_run, add_pictures) -> None:
    datasets = [f"dataset_{number}" for number in range(11)]
    for number in range(12):
        save_run(tmp_path / "runs" / f"run-{number:02d}", "gift" if number == 3 else f"recipe_{number}", datasets=datasets)
    add_pictures(tmp_path / "runs/run-03", tmp_path / "out", [f"caption {number}" for number in range(40)], datasets)
    assert 200_000 < len(page(tmp_path / "runs", tmp_path / "report").encode()) <= 5_000_000


def test_printed_numbers_stand_beside_ours_where_the_order_is_the_papers() -> None:
    printed = printed_rows("mtil-1")
    assert vars(printed["gift"].numbers) == {"transfer": 69.3, "avg": 77.3, "last": 86.0}
    assert any("misprint" in doubt for doubt in printed["l2"].doubts)
    assert printed_rows("mini") == {}


def test_ticks_are_round_and_inside_the_axis() -> None:
    assert Axis(0.0, 103.0, 0, 100).ticks() == [(0.0, "0"), (48.5, "50"), (97.1, "100")]
    assert [text for _, text in Axis(0.0013, 0.0094, 0, 100).ticks()] == ["0.0025", "0.005", "0.0075"]


def test_json_report_holds_every_run(runs: Path) -> None:
    report = json.loads(report_command([runs], None, as_json=True))
    assert [(run["recipe"], run["seed"]) for run in report["runs"]] == [("gift", 1), ("gift", 2), ("l2", 1)]


def test_a_folder_without_runs_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder and holds none"):
        load_runs([tmp_path])


def test_an_unfinished_run_is_named_with_what_is_missing(runs: Path) -> None:
    (runs / "l2" / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"l2 is not finished \(summary.json is missing\)"):
        load_runs([runs / "l2"])


def test_unfinished_runs_of_a_folder_are_left_out_by_name_unless_there_are_no_others(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (runs / "l2" / "summary.json").unlink()
    assert [run.path.name for run in load_runs([runs])] == ["gift-1", "gift-2"]
    assert f"Left out, not finished: {runs / 'l2'}." in caplog.text
    for name in ("gift-1", "gift-2"):
        (runs / name / "summary.json").unlink()
    with pytest.raises(ConfigError, match="gift-1 is not finished"):
        load_runs([runs])
