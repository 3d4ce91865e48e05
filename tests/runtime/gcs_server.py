"""Google Cloud Storage's protocol, spoken by a server of this process.

It is gcp-storage-emulator, with what that leaves aside of an object's generation.
"""

import contextlib
import http.server
import logging
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest

if find_spec("gcsfs") is None:  # imported here, it would not see the server's environment
    pytest.skip("needs gcsfs", allow_module_level=True)
pytest.importorskip("gcp_storage_emulator")

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound

BUCKET = "bucket"
FORBIDDEN = "forbidden"  # one that this account may not see


class _OtherGenerationError(Exception):
    pass


class _Storage(emulator.Storage):
    expected = None  # the generation that the request under way wants to replace; "0" is none
    found = None  # that of the object which it reads
    wanted = None  # the generation that the request under way wants to read

    def __init__(self):
        super().__init__(use_memory_fs=True)
        self.instead: dict[
            str, Callable[[], object]
        ] = {}  # object -> what is done once in place of writing it

    def get_file_obj(self, bucket, name):
        obj = super().get_file_obj(bucket, name)
        self.found = obj["generation"]
        if self.wanted not in (None, self.found):
            raise _OtherGenerationError
        return obj

    def create_file(self, bucket, name, *rest):
        if name in self.instead:
            self.instead.pop(name)()
            return
        if self.expected is not None:
            try:
                there = self.get_file_obj(bucket, name)["generation"]
            except NotFound:
                there = "0"
            if there != self.expected:
                raise _OtherGenerationError
        super().create_file(bucket, name, *rest)


class _Handler(emulator.RequestHandler):
    """Tells an object's generation with its bytes, and refuses to replace another than the named
    one.
    """

    def do_GET(self):
        self.storage.found = None
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        self.storage.wanted = query.get("ifGenerationMatch", [None])[0]
        if f"/b/{FORBIDDEN}" in self.path:
            self._answer(403)
            return
        try:
            super().do_GET()
        except _OtherGenerationError:
            self._answer(412)
        finally:
            self.storage.wanted = None

    def do_POST(self):
        if f"/b/{FORBIDDEN}" in self.path:
            self._answer(403)
            return
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        self.storage.expected = query.get("ifGenerationMatch", [None])[0]
        try:
            super().do_POST()
        except _OtherGenerationError:
            self._answer(412)
        finally:
            self.storage.expected = None

    def _answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        if self.command == "GET" and self.storage.found is not None:
            self.send_header("x-goog-generation", self.storage.found)
        super().end_headers()


class _Server(http.server.HTTPServer):
    def handle_error(self, *_):
        """A client that was killed has not waited for its answer."""


@contextlib.contextmanager
def serving() -> Iterator[tuple[dict[str, str], _Storage]]:
    """Runs the server, with an empty bucket BUCKET; yields the environment in which the clients
    find it, and what it holds.
    """
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # each missing object
    storage = _Storage()
    emulator.buckets.create_bucket(BUCKET, storage)
    httpd = _Server(("127.0.0.1", 0), lambda *args: _Handler(storage, *args))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record's
            # The kind of a bucket is asked by gRPC, which the server does not speak.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        yield environment, storage
    finally:
        httpd.shutdown()
        httpd.server_close()
