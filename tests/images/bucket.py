"""An object store in memory that answers as those of clouds do: many at once, in flat listings, with ETags."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, ClassVar

import fsspec
from fsspec.asyn import AsyncFileSystem

__all__ = ["Bucket"]


class Bucket(AsyncFileSystem):
    """``fake://bucket/key``. Folders are only in the names of objects; listings come with sizes and ETags."""

    protocol = "fake"
    objects: ClassVar[dict[str, bytes]] = {}
    failures: ClassVar[dict[str, list[Exception]]] = {}
    asked: ClassVar[list[tuple[str, int | None, int | None]]] = []
    inside = most = 0

    def _object(self, path: str) -> dict[str, Any]:
        data = self.objects[path]
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return {"name": path, "size": len(data), "type": "file", "ETag": etag}

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.objects:
            return self._object(path)
        if any(name.startswith(f"{path}/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        for name in self.objects:
            if name.startswith(f"{path}/"):
                first, slash, _rest = name.removeprefix(f"{path}/").partition("/")
                folder = {"name": f"{path}/{first}", "size": 0, "type": "directory"}
                found[first] = folder if slash else self._object(name)
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else [one["name"] for one in found.values()]

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        path = self._strip_protocol(path)
        found = {n: self._object(n) for n in sorted(self.objects) if n.startswith(f"{path}/")}
        if withdirs:
            for name in list(found):
                parts = name.split("/")
                for depth in range(len(path.split("/")) + 1, len(parts)):
                    folder = "/".join(parts[:depth])
                    found[folder] = {"name": folder, "size": 0, "type": "directory"}
        if maxdepth is not None:
            found = {n: one for n, one in found.items() if n.removeprefix(path).count("/") <= maxdepth}
        return found if detail else list(found)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        Bucket.asked.append((path, start, end))
        Bucket.inside += 1
        Bucket.most = max(Bucket.most, Bucket.inside)
        await asyncio.sleep(0.001)
        Bucket.inside -= 1
        if self.failures.get(path):
            raise self.failures[path].pop(0)
        return self.objects[path][start:end]


fsspec.register_implementation("fake", Bucket, clobber=True)
