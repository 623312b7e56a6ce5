"""Models that come from another machine: what is wrong with one is said by code, before a byte of it comes where that can be."""

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fedcybgd.coordinator.services.operate import model_uploads
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.model_uploads import LARGEST_TEXT, LARGEST_WEIGHTS, OF_VOCABULARY
from tests.support.live import LiveCoordinator
from tests.support.uploading import asked, begin, files_of, is_known, put, send_all
from tests.support.visits import fresh, operator, refused

pytestmark = pytest.mark.usefixtures("nothing_under_way")


# ---- what is wrong --------------------------------------------------------------------------------------------------------


def test_bytes_of_another_digest_are_thrown_away(live: LiveCoordinator, bert: Path) -> None:
    files = files_of(bert)
    data = files["config.json"]
    upload = begin(live, fresh("wrong"), files)["id"]
    refused(put(live, upload, bytes(len(data)), digest=digest_of(data)), 422, "digest_mismatch")
    assert all(f["offset"] == 0 for f in live.operator.get(f"/model-uploads/{upload}")["files"])
    said = refused(operator(live).post(f"/model-uploads/{upload}/add"), 409, "upload_incomplete")
    assert said.detail["missing"] == list(files)
    assert put(live, upload, data).json()["complete"]
    said = refused(operator(live).post(f"/model-uploads/{upload}/add"), 409, "upload_incomplete")
    assert set(said.detail["missing"]) == set(files) - {"config.json"}


def test_weights_that_are_none_are_thrown_away(live: LiveCoordinator, bert: Path) -> None:
    files = {**files_of(bert), "model.safetensors": b"\x80\x04\x95 a pickle under another name" * 10}
    upload = begin(live, fresh("pickled"), files)["id"]
    refused(put(live, upload, files["model.safetensors"]), 422, "model_files_refused")
    assert next(f["offset"] for f in live.operator.get(f"/model-uploads/{upload}")["files"] if f["name"] == "model.safetensors") == 0


def test_a_header_that_is_too_long_is_not_parsed(live: LiveCoordinator, bert: Path) -> None:
    long = 17 << 20
    data = long.to_bytes(8, "little") + b"{" + b" " * (long - 2) + b"}"
    upload = begin(live, fresh("header"), {**files_of(bert), "model.safetensors": data})["id"]
    said = refused(put(live, upload, data), 422, "model_files_refused")
    assert "header" in said.message


CONFIG = {"name": "config.json", "digest": "0" * 64, "size": 10}
WEIGHTS = {"name": "model.safetensors", "digest": "1" * 64, "size": 10}
REFUSED = [
    *[("invalid_request", [CONFIG, WEIGHTS, {"name": name, "digest": "2" * 64, "size": 1}]) for name in (
        "../x.json", "a/b.json", "/etc/passwd.json", "..", "", ".hidden.json", "a\x00.json", "a\n.json", "x" * 101 + ".json", "ü.json", "a\\b.json", 7, None,
    )],
    *[("model_files_refused", [CONFIG, WEIGHTS, {"name": name, "digest": "2" * 64, "size": 1}]) for name in (
        "modeling_x.py", "pytorch_model.bin", "PYTORCH_MODEL.BIN", "x.pt", "x.pkl", "x.so", "x", "x.JSON", "x.safetensors.bin", "README.md", "config.json",
    )],
    *[("invalid_request", [CONFIG, {**WEIGHTS, "size": size}]) for size in (0, -1, 1.5, "x", LARGEST_WEIGHTS + 1, 10**30, None)],
    *[("invalid_request", [CONFIG, {**WEIGHTS, "digest": digest}]) for digest in ("", "0" * 63, "G" * 64, "0" * 65, "A" * 64, 5)],
    ("invalid_request", []), ("invalid_request", "config.json"), ("invalid_request", [[]]), ("invalid_request", [{**CONFIG, "more": 1}, WEIGHTS]),
    ("invalid_request", [{**CONFIG, "name": f"{n}.json"} for n in range(1001)]),
    ("model_files_refused", [CONFIG]), ("model_files_refused", [WEIGHTS]), ("model_files_refused", [CONFIG, WEIGHTS]),
    ("model_files_refused", [CONFIG, WEIGHTS, *({"name": n, "digest": "2" * 64, "size": 1} for n in ("generation_config.json", "model.safetensors.index.json"))]),
    ("model_files_refused", [CONFIG, WEIGHTS, *({"name": n, "digest": "2" * 64, "size": 1} for n in OF_VOCABULARY)]),
    ("model_files_refused", [CONFIG, WEIGHTS, {**CONFIG, "name": "other.json", "size": 11}]),
    ("model_too_large", [{**CONFIG, "size": LARGEST_TEXT + 1}, WEIGHTS]),
    ("model_too_large", [CONFIG, *[{"name": f"model-{n}.safetensors", "digest": f"{n:064}", "size": LARGEST_WEIGHTS} for n in range(5, 10)]]),
]  # fmt: skip
STATUS = {"invalid_request": 422, "model_files_refused": 422, "model_too_large": 413}


def test_what_is_no_model_is_refused_before_a_byte_of_it_comes(live: LiveCoordinator) -> None:
    before = live.operator.every("/model-uploads")
    for code, files in REFUSED:
        answer = operator(live).post("/model-uploads", json={"name": "model", "files": files})
        assert answer.json()["code"] == code, (files, answer.text)
        refused(answer, STATUS[code], code)
    for name in ("", "a/b", "../x", ".x", "x" * 101, "a b", None, 5):
        refused(operator(live).post("/model-uploads", json={"name": name, "files": [CONFIG, WEIGHTS]}), 422, "invalid_request")
    assert live.operator.every("/model-uploads") == before


def test_no_more_comes_than_was_announced(live: LiveCoordinator, bert: Path) -> None:
    files = files_of(bert)
    data = files["config.json"]
    upload, digest = begin(live, fresh("more"), files)["id"], digest_of(data)
    connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=10)
    connection.putrequest("PUT", f"/v1/model-uploads/{upload}/{digest}?offset=0")
    connection.putheader("Authorization", f"Bearer {live.operator_key}")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()  # and not one byte of the body
    answer = connection.getresponse()
    assert answer.status == 413
    assert b'"model_too_large"' in answer.read()
    connection.close()

    def chunks() -> Iterator[bytes]:  # without a length
        for _ in range(100):
            yield bytes(1 << 16)

    refused(put(live, upload, chunks(), digest=digest), 413, "model_too_large")
    assert put(live, upload, data).json()["complete"], "none of it stands in the way"


def test_what_is_not_announced_is_not_taken(live: LiveCoordinator, bert: Path) -> None:
    upload = begin(live, fresh("only"), files_of(bert))["id"]
    refused(put(live, upload, b"another"), 404, "not_found")
    refused(put(live, "upl_" + "0" * 16, b"another"), 404, "not_found")
    for bad in ("x", "upl_", "..%2f..", "upl_" + "0" * 17):
        assert operator(live).put(f"/model-uploads/{bad}/{'0' * 64}", content=b"x").status_code in (404, 422)
    for offset in (-1, "x"):
        assert operator(live).put(f"/model-uploads/{upload}/{'0' * 64}", params={"offset": offset}, content=b"x").status_code == 422


def test_a_taken_name_is_refused_before_the_first_byte_and_at_the_end(live: LiveCoordinator, model: str, bert: Path) -> None:
    refused(operator(live).post("/model-uploads", json=asked(model, files_of(bert))), 409, "model_name_taken")
    upload = send_all(live, name := fresh("late"), files_of(bert))
    live.add_model(name, bert)
    refused(operator(live).post(f"/model-uploads/{upload}/add"), 409, "model_name_taken")
    assert is_known(live, upload)


def test_uploads_that_are_under_way_are_not_many(coordinators: Callable[..., LiveCoordinator], bert: Path) -> None:
    live, files = coordinators(max_model_bytes=sum(len(d) for d in files_of(bert).values())), files_of(bert)
    first = begin(live, "model-0", files)["id"]
    for number in range(1, model_uploads.MOST_OPEN):
        begin(live, f"model-{number}", files)
    refused(operator(live).post("/model-uploads", json=asked("one-more", files)), 409, "too_many_uploads")
    assert begin(live, "model-0", files)["id"] == first
    more = {**files, "more.json": b"{}"}
    refused(operator(live).post("/model-uploads", json=asked("model-0", more)), 413, "model_too_large")


def test_who_is_no_operator_any_more_sends_nothing(live: LiveCoordinator, bert: Path) -> None:
    files, name = files_of(bert), fresh("leaves")
    upload = begin(live, fresh("left"), files)["id"]
    key = live.operator.post("/operators", {"name": name, "role": "operator"})["key"]
    weights = files["model.safetensors"]

    def slowly() -> Iterator[bytes]:
        yield weights[:100]
        live.operator.post(f"/operators/{name}/revoke")
        yield weights[100:]

    answer = httpx.put(
        f"{live.url}/v1/model-uploads/{upload}/{digest_of(weights)}?offset=0", content=slowly(), headers={"Authorization": f"Bearer {key}"}
    )
    refused(answer, 401, "operator_revoked")
    assert all(f["offset"] == 0 for f in live.operator.get(f"/model-uploads/{upload}")["files"])
