"""Image-caption pairs in every form that people have them, and what is told of pairs that are not whole."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from gift_shared.errors import DataError
from gift_train.data.pairs.listing import open_pairs


def picture(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three images in a folder of their own, 0.png to 2.png, told apart by their red."""
    for number in range(3):
        path = tmp_path / "photos/images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "photos"


def pairs_of(path):
    """[(number of the image, caption)] in the order of the captions."""
    found = open_pairs(path)
    reds = [found.images.image(place).getpixel((0, 0))[0] // 40 for place in range(len(found.images))]
    return [(reds[image], caption) for image, caption in zip(found.images_of, found.captions, strict=True)]


def tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


PAIRS = [(1, "one, and more"), (1, "uno"), (0, "zero"), (2, "two")]
ROWS = [("images/1.png", "one, and more"), ("1.png", "uno"), ("images/0.png", "zero"), ("./images/2.png", "two")]
COCO = {
    "images": [{"id": 7, "file_name": "1.png"}, {"id": 3, "file_name": "0.png"}, {"id": 5, "file_name": "2.png"}],
    "annotations": [{"image_id": key, "caption": text} for key, text in ((5, "two"), (7, "one, and more"), (3, "zero"), (7, "uno"))],
}
KARPATHY = {
    "images": [
        {"filename": f"{number}.png", "filepath": "images", "split": split, "sentences": [{"raw": text} for text in texts]}
        for number, split, texts in ((1, "test", ("one, and more", "uno")), (0, "test", ("zero",)), (2, "train", ("two",)))
    ]
}
FILES = {
    "csv": ("captions.csv", "file_name,caption\n" + "".join(f'{name},"{text}"\n' for name, text in ROWS)),
    "semicolons": ("captions.csv", "caption;image\n" + "".join(f"{text};{name}\n" for name, text in ROWS)),
    "bars of Flickr30k": ("results.csv", "image_name| comment_number| comment\n" + "".join(f"{name}| 0| {text}\n" for name, text in ROWS)),
    "tsv": ("captions.tsv", "filepath\ttitle\n" + "".join(f"{name}\t{text}\n" for name, text in ROWS)),
    "token": ("results.token", "".join(f"{name}#{number}\t{text}\n" for number, (name, text) in enumerate(ROWS))),
    "txt": ("captions.txt", "image,caption\n" + "".join(f'{name},"{text}"\n' for name, text in ROWS)),
    "jsonl": ("metadata.jsonl", "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in ROWS)),
    "json": ("flickr_test.json", json.dumps([{"image": name, "caption": [text]} for name, text in ROWS])),
    "COCO": ("annotations/captions_val2017.json", json.dumps(COCO)),
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_caption_file_is_read_in_its_form(folder, form, by):
    name, content = FILES[form]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert pairs_of(folder if by == "folder" else path) == PAIRS


def test_of_karpathys_splits_the_test_images_are_taken(folder):
    (folder / "dataset_flickr30k.json").write_text(json.dumps(KARPATHY))
    assert pairs_of(folder) == PAIRS[:3]


def test_a_text_beside_each_image_has_a_caption_a_line(folder):
    for number, text in enumerate(("zero\n", "one, and more\nuno\n\n", "two")):
        (folder / f"images/{number}.txt").write_text(text)
    assert pairs_of(folder) == [(0, "zero"), (1, "one, and more"), (1, "uno"), (2, "two")]


def test_tars_have_texts_or_json_beside_their_images(tmp_path):
    tars = tmp_path / "flickr"
    tars.mkdir()
    tar(tars / "a-0.tar", {"x/7.png": picture(1), "x/7.txt": b"one, and more\nuno", "._x.png": b"?"})
    tar(
        tars / "a-1.tar",
        {"8.json": b'{"caption": "zero", "url": "u"}', "8.png": picture(0), "9.png": picture(2), "9.json": b'{"text": ["two"]}'},
    )
    assert pairs_of(tars) == PAIRS
    assert pairs_of(tars / "a-{0..1}.tar") == PAIRS
    assert pairs_of(tars / "a-0.tar") == PAIRS[:2]
    assert open_pairs(tars).images.where(0) == f"{tars / 'a-0.tar'} (x/7)"


def test_a_copy_elsewhere_has_the_same_digest_and_another_caption_another(folder, tmp_path):
    (folder / "captions.csv").write_text(FILES["csv"][1])
    before = open_pairs(folder).digest()
    assert open_pairs(folder.rename(tmp_path / "elsewhere")).digest() == before
    (tmp_path / "elsewhere/captions.csv").write_text(FILES["csv"][1].replace("zero", "nought"))
    assert open_pairs(tmp_path / "elsewhere").digest() != before


FAULTS = [
    (
        "file_name,caption\n1.png,one\n8.png,eight\n9.png,nine\n",
        "2 of the images that .* are not under .*'8.png \\(line 3\\)'; '9.png",
    ),
    ("file_name,caption\n1.png,one\n0.png,  \n", "1 captions of .* are empty: '0.png \\(line 3\\)'"),
    ("file_name,caption\n1.png,one,more\n", "line 2: expected 2 columns as in the first line, found 3"),
    ("picture,words\n1.png,one\n", "expected a header that names the columns of image .* found 'picture, words'"),
    ("file_name,words\n1.png,one\n", "its header: nothing is called like captions are .* found 'file_name, words'"),
    ("file_name,caption\n", "holds no caption"),
    ("file_name,caption\n1.png,caf\udce9\n", "captions.csv is not UTF-8 text"),
]


@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_what_is_missing_in_a_table_is_told_by_name(folder, content, message):
    (folder / "captions.csv").write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        open_pairs(folder)


def test_images_that_no_caption_names_are_left_out_and_told(folder, caplog):
    (folder / "captions.csv").write_text("file_name,caption\n1.png,one\n")
    assert pairs_of(folder) == [(1, "one")]
    assert "names 1 images; 2 others under" in caplog.text


def test_faults_of_json_are_told_by_entry(folder):
    path = folder / "captions.json"
    for content, message in (
        ({"images": COCO["images"], "annotations": [{"image_id": 4, "caption": "x"}]}, "annotation 1: no image has the id 4"),
        ({"images": [{"id": 1}], "annotations": []}, "'images': 0: the key 'file_name' is missing"),
        ({"sets": []}, "expected a list of objects, COCO's images and annotations, or Karpathy's"),
        ([{"image": "1.png", "caption": 3}], "entry 1: expected a caption or a list of captions, found 3"),
        (["1.png"], "entry 1: expected an object"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            open_pairs(folder)


def test_two_files_that_may_be_meant_are_not_chosen_between(folder):
    for name in ("captions.csv", "captions.jsonl"):
        (folder / name).write_text("")
    with pytest.raises(DataError, match=r"several files that may be captions .*captions\.csv.*captions\.jsonl"):
        open_pairs(folder)


def test_a_file_name_that_several_images_have_must_be_named_with_its_folder(folder):
    (folder / "more").mkdir()
    (folder / "more/1.png").write_bytes(picture(0))
    (folder / "captions.csv").write_text("file_name,caption\n1.png,one\n")
    with pytest.raises(DataError, match=r"line 2: 1\.png could be .* Name it with its folder"):
        open_pairs(folder)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": picture(0), "b.png": picture(1), "b.txt": b"b"}, "1 samples have no caption .*'a'"),
        ({"a.png": picture(0), "a.txt": b"a", "c.txt": b"c"}, "1 samples have no image: 'c'"),
        ({"a.png": picture(0), "a.txt": b" \n"}, "1 samples have an empty caption: 'a'"),
        ({"a.png": picture(0), "a.json": b'{"captions": ["one", ""]}'}, "1 samples have an empty caption: 'a'"),
        ({"a.png": picture(0), "a.jpg": picture(0), "a.txt": b"a"}, "sample 'a' has two images"),
        ({"a.png": b"no picture", "a.txt": b"a"}, "\\(a\\) does not decode as an image"),
        ({"a.png": picture(0), "a.txt": b"\xff"}, "\\(a.txt\\) is not UTF-8 text"),
        ({"a.png": picture(0), "a.json": b"[]"}, "\\(a.json\\): expected an object with a caption, found list"),
    ],
)
def test_what_is_missing_in_a_tar_is_told_by_its_key(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        open_pairs(tar(tmp_path / "pairs.tar", members))


def test_images_without_any_caption_are_told(folder, tmp_path):
    with pytest.raises(DataError, match=r"3 images of .* have no caption.*0.png \(no 0.txt\)"):
        open_pairs(folder)
    with pytest.raises(DataError, match="neither a folder nor a file"):
        open_pairs(tmp_path / "nowhere")


def test_captions_stay_with_their_images_in_a_large_list(folder):
    rows = np.random.default_rng(1).integers(0, 3, 500)
    (folder / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{number}.png,{number} {place}\n" for place, number in enumerate(rows))
    )
    assert pairs_of(folder) == [(number, f"{number} {place}") for place, number in enumerate(rows)]
