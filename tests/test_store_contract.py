"""The laws of a store, of every kind of place that we know: a folder, the memory, buckets behind a real server.

The servers run in this process, where they are installed:
pip install 'forethought[remote]' 'moto[server]' gcp-storage-emulator
"""

import os
import pickle
import secrets
import subprocess
import sys
import traceback
import urllib.request
from contextlib import contextmanager

import pytest

from forethought.errors import StorePathError
from forethought.store import Bucket, Column, Folder, Store
from forethought.testing import StoreContract, read_rows, write_rows
from forethought.testing.places import COLUMNS


class TestFolder(StoreContract):
    @pytest.fixture
    def open_place(self, tmp_path):
        return lambda name: Folder(tmp_path / name)


class TestMemory(StoreContract):
    @pytest.fixture
    def open_place(self):
        test = secrets.token_hex(8)
        return lambda name: Bucket(f"memory://{test}/{name}")


@contextmanager
def environment(**values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3, and a bucket on it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    with environment(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="user", AWS_SECRET_ACCESS_KEY="hidden"):
        with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")) as answer:
            assert answer.status == 200
        yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module")
def gs():
    """A server that speaks Google's protocol, and a bucket on it."""
    with environment(GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false"):  # or it asks for the kind of bucket, for a minute
        pytest.importorskip("gcsfs")
    import fsspec

    module = pytest.importorskip("gcp_storage_emulator.server")
    server = module.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    with environment(STORAGE_EMULATOR_HOST=f"http://127.0.0.1:{server._api._httpd.server_address[1]}"):
        fsspec.config.conf["gs"] = {"token": "anon"}
        yield "gs://bucket"
        del fsspec.config.conf["gs"]
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the servers' and the drivers' own
class TestS3(StoreContract):
    fault_step = 5

    @pytest.fixture
    def open_place(self, s3, tmp_path):
        test = secrets.token_hex(8)
        return lambda name: Bucket(f"{s3}/{test}/{name}", tmp_path / secrets.token_hex(8))

    def test_processes_share_a_store(self, s3, tmp_path):
        """Forked ones and one that got the table by mail write and read at once: connections are each one's own."""
        store = Store(f"{s3}/{secrets.token_hex(8)}", cache=tmp_path)
        table = store.table("ab", COLUMNS)
        write_rows(table, range(10))
        run = subprocess.run(
            [sys.executable, "-W", "ignore", __file__], input=pickle.dumps(table), capture_output=True, timeout=120
        )
        assert run.returncode == 0, run.stderr.decode()
        table.refresh()
        assert read_rows(table, range(50)) == set(range(40))
        assert table.damaged == {}

    def test_bucket_that_is_not_there_is_an_error(self, s3):
        """A store is made in a bucket, and a bucket is made by its owner."""
        with pytest.raises(StorePathError, match="Cannot"):
            Store(f"{s3}-of-nobody/x")

    def test_large_segment_arrives_whole(self, s3, tmp_path):
        """Of more than what the driver sends in one piece."""
        url = f"{s3}/{secrets.token_hex(8)}"
        columns = [Column("0", "U8", (2**20,))]
        write_rows(Store(url, cache=tmp_path / "a").table("ab", columns), range(110), segment_rows=110)
        assert read_rows(Store(url, cache=tmp_path / "b").table("ab"), range(111)) == set(range(110))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestGoogle(StoreContract):
    fault_step = 5

    @pytest.fixture
    def open_place(self, gs, tmp_path):
        test = secrets.token_hex(8)
        return lambda name: Bucket(f"{gs}/{test}/{name}", tmp_path / secrets.token_hex(8))

    def test_rows_come_back_bit_for_bit(self):
        pytest.skip("this server loses a carriage return at the end of a file; the other laws read rows as well")


def share(table):
    """Read what is there with children, each of which adds ten rows."""
    assert read_rows(table, range(10)) == set(range(10))
    children = []
    for start in (10, 20, 30):
        child = os.fork()
        if child == 0:
            try:
                assert read_rows(table, range(10)) == set(range(10))
                write_rows(table, range(start, start + 10))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    table.refresh()
    assert read_rows(table, range(50)) == set(range(40))


if __name__ == "__main__":
    share(pickle.load(sys.stdin.buffer))
