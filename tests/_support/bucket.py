"""A bucket on this machine: the part of Google Cloud Storage's JSON interface that a run uses.

TensorStore, gcsfs and Google's own client are pointed at it by environment variables, so that a
run writes to `gs://…` through the code that it would use in the cloud, and no network is asked.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
import zlib
from collections.abc import Iterator


class Bucket:
    """Objects by `bucket/name`, each `(bytes, generation)`; what was refused is in `unknown`."""

    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, str] = {}
        self.parts: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.count, self.lock = itertools.count(1), threading.Lock()
        self.url = ""

    def put(self, key: str, data: bytes) -> None:
        with self.lock:
            self.objects[key] = (data, next(self.count))

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(key for key in self.objects if key.startswith(prefix))

    def environment(self) -> dict[str, str]:
        """Send every client of a process here, and keep it from looking for credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask for the bucket's kind
            "NO_PROXY": "127.0.0.1",
        }


@contextlib.contextmanager
def serve() -> Iterator[Bucket]:
    """Serve an empty bucket, of any name, on a free port."""
    bucket = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": bucket})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that was killed; others are in `unknown`
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o/?")
UPLOAD = re.compile(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o")
INFO = re.compile(r"/storage/v1/b/([^/]+)/?")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        if isinstance(body, dict):
            headers["Content-Type"] = "application/json"
            body = json.dumps(body).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def about(self, key: str) -> dict:
        data, generation = self.bucket.objects[key]
        bucket, _, name = key.partition("/")
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "crc32c": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "mediaLink": f"{self.bucket.url}/download/storage/v1/b/{bucket}/o/"
            f"{urllib.parse.quote(name, safe='')}?alt=media",
        }

    def refused(self, key: str) -> bool:
        """Whether the caller knows another generation of an object than the one there is."""
        there = self.bucket.objects.get(key, (b"", 0))[1]
        want, other = self.query.get("ifGenerationMatch"), self.query.get("ifGenerationNotMatch")
        return (want is not None and int(want) != there) or (
            other is not None and int(other) == there
        )

    def do_any(self) -> None:
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.body = self.read()
        for pattern, method in (
            (UPLOAD, "upload"),
            (OBJECT, f"object_{self.command.lower()}"),
            (LIST, f"list_{self.command.lower()}"),
            (INFO, f"info_{self.command.lower()}"),
            (re.compile("/batch/.*"), "batch"),
        ):
            if (match := pattern.fullmatch(path)) and hasattr(self, method):
                parts = [urllib.parse.unquote(part) for part in match.groups()]
                try:
                    return getattr(self, method)(*parts)
                except ConnectionError:  # a client that was killed, or that needs no more
                    self.close_connection = True
                    return None
                except Exception as error:
                    self.bucket.unknown.append(f"{self.command} {self.path}: {error!r}")
                    raise
        self.bucket.unknown.append(f"{self.command} {self.path}")
        self.answer(501, {"error": {"code": 501, "message": "not in this bucket"}})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def missing(self) -> None:
        self.answer(404, {"error": {"code": 404, "message": "no such object"}})

    def info_get(self, bucket: str) -> None:
        self.answer(200, {"kind": "storage#bucket", "name": bucket, "id": bucket})

    def list_get(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        first, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        items, prefixes = [], set()
        for key in self.bucket.names(f"{bucket}/{prefix}"):
            name = key.partition("/")[2]
            if name < first or (end and name >= end):
                continue
            head, split, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if split:
                prefixes.add(prefix + head + delimiter)
            else:
                with contextlib.suppress(KeyError):  # deleted meanwhile
                    items.append(self.about(key))
        limit = int(self.query.get("maxResults") or 1000)
        self.answer(
            200, {"kind": "storage#objects", "items": items[:limit], "prefixes": [*prefixes]}
        )

    def object_get(self, bucket: str, name: str) -> None:
        key = f"{bucket}/{name}"
        if key not in self.bucket.objects:
            return self.missing()
        if self.refused(key):
            return self.answer(304)
        if self.query.get("alt") != "media":
            return self.answer(200, self.about(key))
        data, generation = self.bucket.objects[key]
        headers = {"x_goog_generation": str(generation), "Content_Type": "application/octet-stream"}
        if span_match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span_match[1] or 0), int(span_match[2] or len(data) - 1)
            if not span_match[1]:  # the last so many
                first, last = max(0, len(data) - last), len(data) - 1
            part = data[first : last + 1]
            if not part:
                return self.answer(416)
            span = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            return self.answer(206, part, Content_Range=span, **headers)
        return self.answer(200, data, **headers)

    object_head = object_get

    def object_delete(self, bucket: str, name: str) -> None:
        key = f"{bucket}/{name}"
        if key not in self.bucket.objects:
            return self.missing()
        if self.refused(key):
            return self.answer(412)
        with self.bucket.lock:
            self.bucket.objects.pop(key, None)
        return self.answer(204)

    def object_post(self, bucket: str, name: str) -> None:
        """Copy: NAME/rewriteTo/b/BUCKET/o/NAME."""
        name, _, target = name.partition("/rewriteTo/b/")
        there, _, target = target.partition("/o/")
        if f"{bucket}/{name}" not in self.bucket.objects:
            return self.missing()
        self.bucket.put(f"{there}/{target}", self.bucket.objects[f"{bucket}/{name}"][0])
        resource = self.about(f"{there}/{target}")
        size = resource["size"]
        return self.answer(
            200,
            {"done": True, "resource": resource, "objectSize": size, "totalBytesRewritten": size},
        )

    def upload(self, bucket: str) -> None:
        kind, name = self.query.get("uploadType"), self.query.get("name", "")
        if at := self.query.get("upload_id"):
            key = self.bucket.uploads[at]
            span = re.fullmatch(r"bytes (\d+|\*)(?:-\d+)?/(\d+|\*)", self.headers["Content-Range"])
            data = self.bucket.parts.pop(at, b"") + self.body
            if span[2] != "*":
                return self.store(key, data)
            self.bucket.parts[at] = data
            return self.answer(308, Range=f"bytes=0-{len(data) - 1}")
        if kind == "resumable":
            at = str(next(self.bucket.count))
            self.bucket.uploads[at] = f"{bucket}/{name or json.loads(self.body)['name']}"
            place = f"{self.bucket.url}/upload/storage/v1/b/{bucket}/o"
            return self.answer(200, {}, Location=f"{place}?uploadType=resumable&upload_id={at}")
        if kind == "multipart":
            mark = self.headers["Content-Type"].partition("boundary=")[2].strip("\"'").encode()
            header, data = self.body.split(b"--" + mark)[1:3]
            header, data = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (header, data)
            )
            return self.store(
                f"{bucket}/{json.loads(header)['name']}", re.sub(rb"\r?\n$", b"", data)
            )
        return self.store(f"{bucket}/{name}", self.body)

    def store(self, key: str, data: bytes) -> None:
        if self.refused(key):
            return self.answer(412)
        self.bucket.put(key, data)
        return self.answer(200, self.about(key))

    def batch(self) -> None:
        """Several deletions as one request."""
        answers = ""
        for path in re.findall(r"^DELETE ([^ ?]+)", self.body.decode(), re.MULTILINE):
            bucket, name = map(urllib.parse.unquote, OBJECT.fullmatch(path).groups())
            with self.bucket.lock:
                there = self.bucket.objects.pop(f"{bucket}/{name}", None)
            status = "204 No Content" if there else "404 Not Found"
            answers += f"--x\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n"
        self.answer(200, f"{answers}--x--\r\n".encode(), Content_Type="multipart/mixed; boundary=x")
