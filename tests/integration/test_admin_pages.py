"""The pages of /admin: who sees and who acts, what is shown as text, how lists are walked, and what is said where there is nothing."""

import itertools
import json
import re
from collections.abc import Callable

import httpx
import pytest
import yaml
from fastapi.routing import APIRoute

from fedcybgd.coordinator.dashboard.acting import router
from fedcybgd.coordinator.dashboard.browser import COOKIE
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.services.agents.logins import form_token
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.operators import AuditEntry, check_audit
from tests.support.browser import browser, logged_in
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, finish, fresh, refused, start_run

HTML = {"Accept": "text/html,*/*"}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
NO_EXPORT, NO_UPLOAD = "job_0000000000000000", "upl_0000000000000000"
ACTS = ["start", "pause", "resume", "cancel", "rollback", "export"]


def acts(run: str, agent: str) -> list[str]:
    """Everything that can be done on pages, with this run and this agent: no new one is left out."""
    paths = [
        route.path.format(run=run, name=agent, export_id=NO_EXPORT, digest="0" * 64, upload_id=NO_UPLOAD)
        for route in router.routes
        if isinstance(route, APIRoute)
    ]
    assert len(paths) >= len(ACTS) + 4
    return paths


@pytest.fixture(scope="module")
def run(live: LiveCoordinator, model: str) -> str:
    """The id of a run that is done, and whose agent had trouble before: it is looked at only."""
    hand = Hand(live)
    name = start_run(live, model, [hand])
    hand.give_back(hand.take(name), "other", HOSTILE)
    finish(live, name, [hand])
    return str(live.operator.get(f"/runs/{name}")["id"])


def viewer(live: LiveCoordinator) -> httpx.Client:
    return logged_in(live, live.operator.post("/operators", {"name": fresh("vera"), "role": "viewer"})["key"])


def post(client: httpx.Client, path: str, **fields: str) -> httpx.Response:
    """With the form token of this browser."""
    return client.post(path, data={"form": form_token(client.cookies[COOKIE]), **fields})


def pages(live: LiveCoordinator, run: str) -> list[str]:
    agent = live.operator.every(f"/runs/{run}/timeline")[0]["agent"]
    return [
        "/admin", "/admin/runs", f"/admin/runs/{run}", f"/admin/runs/{run}?x=bytes", f"/admin/runs/{run}/blocks/layers.0", "/admin/agents",
        f"/admin/agents/{agent}", "/admin/models", f"/admin/events?run={run}", "/admin/audit", f"/admin/compare?run={run}&run={run}&x=minutes",
    ]  # fmt: skip


def test_what_a_run_shows_is_what_happened(live: LiveCoordinator, run: str) -> None:
    visits = live.operator.every(f"/runs/{run}/timeline")
    assert {visit["state"] for visit in visits} == {"accepted"}
    assert sum(visit["failures"] for visit in visits) == 1, "it gave one back"
    who = {visit["agent"] for visit in visits}
    for visit in visits:
        kinds = [phase["kind"] for phase in visit["phases"]]
        assert kinds[-1] == "judging", visit
        assert set(kinds) <= {"waiting", "transfer", "training", "judging"}
        times = [(phase["begins"], phase["ends"]) for phase in visit["phases"]]
        assert times == sorted(times)
        assert all(ends == begins for (_, ends), (begins, _) in itertools.pairwise(times)), "no time is lost in between"
    for block in live.operator.every(f"/runs/{run}/blocks"):
        history = live.operator.every(f"/runs/{run}/blocks/{block['name']}/versions")
        assert [v["version"] for v in history] == list(range(block["version"], -1, -1))
        assert (block["last"] is None) == (block["version"] == 0)
        assert block["holders"] == []
        if block["last"] is not None:
            assert block["last"]["agent"] in who
            assert block["last"]["norm"] > 0
            assert block["last"]["round"] == block["round"] == history[0]["round"]
            assert history[0]["made_by"][0] == block["last"]
    shown = live.operator.get(f"/runs/{run}/series")
    parameters = live.operator.get(f"/models/{live.operator.get(f'/runs/{run}')['model']}")["num_parameters"]
    assert (shown["visits"], shown["fedavg_bytes"]) == (len(visits), len(visits) * 2 * 2 * parameters)


def test_every_page_can_be_read_by_program_and_person(live: LiveCoordinator, run: str) -> None:
    client = viewer(live)
    for path in pages(live, run):
        page = client.get(path)
        assert page.status_code == 200, path
        text = page.text
        assert not re.findall(r"https?://|<style|<script>|javascript:|<[^>]*\s(?:style|on[a-z]+)=", text), path
        assert text.count("<main>") == text.count("<h1>") == text.count("</h1>") == 1, path
        assert all("scope=" in heading for heading in re.findall(r"<th[ >][^>]*>?", text)), path
        ids = re.findall(r'\sid="([^"]+)"', text)
        assert len(ids) == len(set(ids)), path
        assert len(text) < 150_000, path
        part = client.get(path, params={**dict(httpx.URL(path).params.multi_items()), "part": "live"}).text
        assert "<main>" not in part, path


def test_what_others_write_is_shown_as_text(live: LiveCoordinator, run: str) -> None:
    client = logged_in(live)
    shown = 0
    for path in pages(live, run):
        text = client.get(path).text
        assert "<script>alert" not in text, path
        assert "<img" not in text, path
        shown += "&lt;script&gt;alert(1)" in text
    assert shown >= 3, "the run, its agent and the events tell of it"


def test_a_viewer_sees_and_has_no_buttons(live: LiveCoordinator, run: str, model: str, hand: Hand) -> None:
    client, going = viewer(live), start_run(live, model, [hand])
    for path in [*pages(live, run), f"/admin/runs/{going}"]:
        targets = set(re.findall(r'method="post" action="([^"]+)"', client.get(path).text))
        assert targets == {"/admin/logout"}, path
    for path in acts(going, hand.name):
        refused(post(client, path, after_rounds="0"), 403, "role_too_low")
    assert live.operator.get(f"/runs/{going}")["state"] == "running"
    assert hand.me().name == hand.name


@pytest.mark.parametrize("form", ["", "0" * 64])
def test_what_another_site_sends_does_nothing(live: LiveCoordinator, run: str, model: str, hand: Hand, form: str) -> None:
    client, going = logged_in(live), start_run(live, model, [hand])
    for path in acts(going, hand.name):
        refused(client.post(path, data={"form": form, "after_rounds": "0"}), 403, "form_foreign")
    assert live.operator.get(f"/runs/{going}")["state"] == "running"
    assert hand.me().name == hand.name


def test_an_operator_steers_a_run_and_it_stands_in_the_audit_log(live: LiveCoordinator, model: str, hand: Hand) -> None:
    key = live.operator.post("/operators", {"name": (name := fresh("olga")), "role": "operator"})["key"]
    client, run = logged_in(live, key), start_run(live, model, [hand])
    page = client.get(f"/admin/runs/{run}").text
    assert {f"{act}" for act in ACTS if f'/{act}"' in page} == {"pause", "rollback", "export", "cancel"}
    for act, state, fields in [
        ("pause", "paused", {}), ("resume", "running", {}), ("rollback", "paused", {"after_rounds": "0"}), ("cancel", "cancelled", {}),
    ]:  # fmt: skip
        answer = post(client, f"/admin/runs/{run}/{act}", **fields)
        assert answer.status_code == 303, answer.text
        assert 'class="did"' in client.get(answer.headers["location"]).text
        assert live.operator.get(f"/runs/{run}")["state"] == state
    done = [entry["act"] for entry in live.operator.every("/audit") if entry["name"] == name and entry["outcome"] == "done"]
    assert done[1:] == [f"POST /admin/runs/{{run}}/{act}" for act in ("pause", "resume", "rollback", "cancel")]
    assert done[1] in client.get("/admin/audit", params={"name": name}).text


def test_a_refusal_is_a_page_for_whoever_reads_pages(live: LiveCoordinator, run: str) -> None:
    client = logged_in(live)
    done = client.post(f"/admin/runs/{run}/pause", data={"form": form_token(client.cookies[COOKIE])}, headers=HTML)
    assert done.status_code == 409
    assert "That was not done" in done.text
    for path, status, said in (
        ("runs/no-such", 404, "there is no run &#39;no-such&#39;"), ("nothing", 404, "there is no such page"),
        ("events?level=loud", 422, "level must be &#39;"), ("compare?x=hours", 422, "x must be &#39;"), ("agents?state=loud", 422, "understood: state must be &#39;"),
    ):  # fmt: skip
        page = client.get(f"/admin/{path}", headers=HTML)
        assert page.status_code == status, page.text
        assert "That cannot be shown" in page.text
        assert said in page.text
    refused(client.get("/admin/nothing"), 404, "not_found")
    for wrong in ("soon", "-1", "9" * 30):
        refused(post(client, f"/admin/runs/{run}/rollback", after_rounds=wrong), 404, "round_unknown")


def test_whoever_is_not_logged_in_comes_back_to_the_page(live: LiveCoordinator, run: str) -> None:
    client, path = browser(live), f"/admin/runs/{run}"
    form = client.get(path, headers=HTML)
    assert form.status_code == 401
    assert f'name="then" value="{path}"' in form.text
    token = re.search(r'name="form" value="([0-9a-f]{64})"', form.text)
    assert token
    for then, to in [(path, path), ("https://evil.example/admin", "/admin"), ("//evil.example", "/admin"), ("/admin//evil\nx", "/admin")]:
        other = browser(live)
        other.cookies = client.cookies
        answer = other.post("/admin", data={"form": token[1], "key": live.operator_key, "then": then})
        assert (answer.status_code, answer.headers["location"]) == (303, to)


def test_a_long_list_is_walked(live: LiveCoordinator, run: str) -> None:
    code, client = fresh("many").replace("-", "_"), viewer(live)
    with live.database.transaction() as session:
        for number in range(120):
            record(session, utcnow(), "info", code, f"event {number:03} of a long list")
    path, seen = f"/admin/events?code={code}", []
    while path:
        page = client.get(path).text
        seen.append(re.findall(r"event (\d{3}) of a long list", page))
        found = re.search(r'rel="next" href="([^"]+)"', page)
        path = found[1].replace("&amp;", "&") if found else ""
    assert [len(numbers) for numbers in seen] == [50, 50, 20]
    assert [number for page in seen for number in page] == [f"{number:03}" for number in reversed(range(120))]


def test_a_token_is_shown_to_its_owner_this_once(live: LiveCoordinator) -> None:
    client = logged_in(live)
    page = post(client, "/admin/tokens")
    token = re.search(r"fct_[\w-]+", page.text)
    assert token
    assert page.headers["cache-control"] == "no-store"
    for path in ("/admin", "/admin/agents", "/admin/audit", "/admin/events"):
        assert token[0] not in client.get(path).text


def test_a_run_file_comes_back_as_it_counts(live: LiveCoordinator, run: str) -> None:
    answer = viewer(live).get(f"/admin/runs/{run}/run.yaml")
    assert "attachment" in answer.headers["content-disposition"]
    spec = RunFile.model_validate(yaml.safe_load(answer.text))
    assert spec.model_dump(mode="json") == live.operator.get(f"/runs/{run}")["spec"]


def test_an_export_is_made_and_fetched_on_the_page(live: LiveCoordinator, run: str) -> None:
    client = logged_in(live)
    assert post(client, f"/admin/runs/{run}/export").status_code == 303
    made = live.operator.wait(
        lambda: live.operator.get(f"/runs/{run}/exports")[0],
        lambda export: export["state"] not in ("queued", "running"),
        every=0.05,
        limit=60,
    )
    assert made["state"] == "done", made
    link = f"/admin/runs/{run}/exports/{made['export_id']}/config.json"
    assert link in client.get(f"/admin/runs/{run}").text
    assert client.get(link).json()["model_type"] == "bert"
    refused(viewer(live).get(link), 403, "role_too_low")


def test_what_needs_somebody_comes_first(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    live.operator.post(f"/runs/{run}/pause")
    alarms = [alarm for alarm in live.operator.get("/status")["alarms"] if alarm["run"] == run]
    assert [(alarm["code"], alarm["level"]) for alarm in alarms] == [("run_paused", "warning")], "an operator did it"
    page = logged_in(live).get("/admin").text
    assert page.index(f"{run} is paused") < page.index('id="going"')
    assert alarms[0]["advice"] in page


def test_where_there_is_nothing_it_says_what_to_do(coordinators: Callable[..., LiveCoordinator]) -> None:
    client = logged_in(coordinators())
    for path, said in [
        ("/admin", "fedcoord run create run.yaml"), ("/admin", "Nothing needs anybody"), ("/admin/runs", "fedcoord run create"),
        ("/admin/agents", "fedagent enroll"), ("/admin/agents?state=silent", "None is silent"), ("/admin/models", "fedcoord models add"),
        ("/admin/events?level=error", "Nothing of that kind"), ("/admin/audit?name=nobody", "No such entry"), ("/admin/compare", "Choose runs"),
    ]:  # fmt: skip
        assert said in client.get(path).text, path


def test_lists_are_downloaded_whole(live: LiveCoordinator, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcybgd.coordinator.dashboard.downloads.ROWS", 3)
    code, client = fresh("many").replace("-", "_"), viewer(live)
    with live.database.transaction() as session:
        for number in range(20):
            record(session, utcnow(), "info", code, f"event {number:03}\nof a long list")
    assert f'href="/admin/events.jsonl?code={code}"' in client.get(f"/admin/events?code={code}").text
    got = client.get(f"/admin/events.jsonl?code={code}")
    assert got.headers["content-disposition"] == 'attachment; filename="events.jsonl"'
    assert [json.loads(line)["message"][6:9] for line in got.text.splitlines()] == [f"{number:03}" for number in reversed(range(20))]
    refused(client.get("/admin/events.jsonl?run=no-such"), 404, "not_found")
    assert client.get("/admin/events.jsonl?code=nothing_of_it").text == ""
    acts = [AuditEntry.model_validate_json(line) for line in client.get("/admin/audit.jsonl").text.splitlines()]
    assert check_audit(iter(acts))[0] == len(acts) > 3
