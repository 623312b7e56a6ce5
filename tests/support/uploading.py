"""A model's files, sent as a program of anybody's would."""

from pathlib import Path
from typing import Any

import httpx

from fedcybgd import Client
from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.visits import operator


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def asked(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"name": name, "files": [{"name": n, "digest": digest_of(data), "size": len(data)} for n, data in files.items()]}


def begin(live: LiveCoordinator, name: str, files: dict[str, bytes]) -> Any:
    return live.operator.post("/model-uploads", asked(name, files))


def put(live: LiveCoordinator, upload: str, data: Any, offset: int = 0, digest: str | None = None) -> httpx.Response:
    return operator(live).put(f"/model-uploads/{upload}/{digest or digest_of(data)}", params={"offset": offset}, content=data)


def send_all(live: LiveCoordinator, name: str, files: dict[str, bytes]) -> str:
    upload = str(begin(live, name, files)["id"])
    for data in files.values():
        assert put(live, upload, data).json() == {"offset": len(data), "complete": True}
    return upload


def added(live: LiveCoordinator, upload: str) -> Any:
    name = live.operator.post(f"/model-uploads/{upload}/add")["name"]
    return live.operator.wait(lambda: live.operator.get(f"/models/{name}"), lambda m: m["state"] != "adding", every=0.05, limit=60)


def is_known(live: LiveCoordinator, upload: str) -> bool:
    return any(one["id"] == upload for one in live.operator.every("/model-uploads"))


def client(live: LiveCoordinator) -> Client:
    return Client(live.url, live.operator_key, patience_s=60)
