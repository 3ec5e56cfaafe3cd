"""Shards in a bucket: s3fs against moto's server, which speaks the protocol over a socket."""

import sys
from collections.abc import Iterator

import pytest

from gift_shared.errors import ShardError
from gift_shared.shards import read_image_bytes, require_images
from gift_shared.storage import index_file
from gift_shared.tables import read_output_index

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'gift-cl[remote]'")
pytest.importorskip("moto.server", reason="moto's server is not installed: pip install 'moto[server]'")


@pytest.fixture(scope="module")
def endpoint(listening) -> str:
    return f"http://127.0.0.1:{listening(lambda port: [sys.executable, '-m', 'moto.server', '-p', str(port)])}"


@pytest.fixture
def bucket(endpoint: str, out, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """The output folder as s3://gift/out, with the settings that users of other providers than AWS make."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("gift")
    files.put(f"{out}/", "gift/out/", recursive=True)
    yield files
    files.rm("gift", recursive=True)


def test_a_bucket_reads_as_the_folder_does(bucket, remote, out, places):
    folder = remote("s3://gift/out")
    rows = read_output_index(folder)[0]
    assert rows.equals(read_output_index(out)[0])
    require_images(folder, [rows])
    assert [read_image_bytes(folder, **place) for place in places] == [read_image_bytes(out, **place) for place in places]


def test_an_object_that_is_missing_or_cut_short_is_an_error_that_names_its_url(bucket, remote, places):
    tar = bucket.cat_file("gift/out/shards/cats-00000.tar")
    bucket.pipe_file("gift/out/shards/cats-00000.tar", tar[:20_000])
    with pytest.raises(ShardError, match=r"s3://gift/out/shards/cats-00000\.tar has 20000 bytes, .* but its rows claim"):
        read_image_bytes(remote("s3://gift/out"), **places[0])
    bucket.rm("gift/out/shards/cats-00000.tar")
    with pytest.raises(ShardError, match=r"s3://gift/out/shards/cats-00000\.tar is not there \(404\)"):
        read_image_bytes(remote("s3://gift/out"), **places[0])


def test_an_index_that_is_replaced_is_seen(bucket, remote):
    before = index_file(remote("s3://gift/out")).read_bytes()
    bucket.pipe_file("gift/out/index.parquet", bucket.cat_file("gift/out/shards/cats-00001.parquet"))
    assert index_file(remote("s3://gift/out")).read_bytes() != before


def test_no_credentials_are_told(remote, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ShardError, match=r"s3://gift/out/index\.parquet (cannot be asked for|may not be read).*credentials"):
        read_output_index(remote("s3://gift/out"))


def test_an_endpoint_nobody_listens_at_is_told(bucket, remote, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ShardError, match=r"s3://gift/out/index\.parquet could not be read in 4 attempts"):
        read_output_index(remote("s3://gift/out"))
