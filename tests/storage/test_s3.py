"""Shards in a bucket: s3fs against moto's server, which speaks the protocol over a socket."""

import contextlib
import http.server
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from gift_shared.errors import ShardError
from gift_shared.parquet_files import read_output_index
from gift_shared.remote_files import Patience
from gift_shared.shards import read_image_bytes, require_images
from gift_shared.storage import index_file

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


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_ENDPOINT_URL", "storage.example:9000", "ValueError"),
        ("AWS_PROFILE", "misspelt", "ProfileNotFound"),
    ],
)
def test_settings_that_cannot_be_right_are_told_at_once(bucket, remote, monkeypatch, caplog, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(
        ShardError, match=rf"s3://gift/out/index\.parquet cannot be asked for \({told}: .*Check URL, endpoint and credentials"
    ):
        read_output_index(remote("s3://gift/out"))
    assert "attempt" not in caplog.text


def test_a_bucket_that_cannot_be_named_so_is_told_at_once(bucket, remote, caplog):
    with pytest.raises(ShardError, match=r"(?s)cannot be asked for \(ParamValidationError: .*Check URL, endpoint and credentials"):
        read_output_index(remote("s3://gift bucket/out"))
    assert "attempt" not in caplog.text


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers HEAD with the server's status; sends 7000 bytes for GET, ten a second."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "7000")
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()

    def do_GET(self):
        self.send_response(206)
        self.send_header("Content-Length", "7000")
        self.send_header("Content-Range", "bytes 0-6999/7000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(7000):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)

    def log_message(self, *_):
        pass


@pytest.fixture
def answers(bucket, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield server
        server.shutdown()


def test_an_object_that_drips_is_not_waited_for_for_ever(answers, remote, monkeypatch):
    answers.status = 200
    monkeypatch.setattr("gift_shared.remote_files.SLOWEST", 2)
    with pytest.raises(ShardError, match=r"could not be read in 2 attempts .*TimeoutError \(no whole answer within 1 s\)"):
        read_output_index(remote("s3://gift/out", patience=Patience(attempts=2, first_wait=0.01, stall=0.5)))


def test_an_expired_token_is_told_with_the_credentials(answers, remote, caplog):
    answers.status = 400  # as S3 answers HEAD, without a word why
    with pytest.raises(ShardError, match=r"s3://gift/out/index\.parquet .*400.*Check URL and credentials; has a token expired\?"):
        read_output_index(remote("s3://gift/out"))
    assert "attempt" not in caplog.text


def test_an_endpoint_nobody_listens_at_is_told(bucket, remote, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ShardError, match=r"s3://gift/out/index\.parquet could not be read in 4 attempts"):
        read_output_index(remote("s3://gift/out"))
