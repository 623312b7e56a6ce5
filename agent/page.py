"""The page on which this machine alone sees what its agent does: what `fedagent status` says, drawn anew every few seconds."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Any

from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.loopback import LoopbackPort
from fedcybgd.agent.settings import Home
from fedcybgd.agent.status import StatusReport, at, cached, for_anybody, gathered, site_cache
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.sizes import counted

EVERY_S = 3
STYLE = """
:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; } p { margin: .2rem 0; } progress { width: 100%; }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; border-bottom: 1px solid #8884; }
.wide { overflow-x: auto; } td { white-space: nowrap; } .n { text-align: right; font-variant-numeric: tabular-nums; } .bad { color: #c0362c; } .mute { opacity: .7; }
"""
HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class PagePort(LoopbackPort):
    """Answers `GET /` with the page, and `GET /status.json` with the same for programs."""

    def __init__(self, port: int, home: Home, mine: Credentials) -> None:
        """Raises `ConfigError` where the port cannot be had."""

        def look() -> StatusReport:
            return for_anybody(gathered(home, mine))

        answers = {
            "/": ("text/html; charset=utf-8", lambda: drawn(look())),
            "/status.json": ("application/json", lambda: look().model_dump_json(indent=2)),
        }
        super().__init__(port, "--page", answers, {"Content-Security-Policy": POLICY})


def drawn(view: StatusReport) -> str:
    """HTML; nothing in it is loaded from anywhere."""
    head = f'<meta charset="utf-8"><meta http-equiv="refresh" content="{EVERY_S}"><meta name="viewport" content="width=device-width">'
    body = "\n".join(_parts(view))
    return f'<!doctype html><html lang="en"><head>{head}<title>{_said(view.agent)}</title><style>{STYLE}</style></head><body>{body}</body></html>'


def _parts(view: StatusReport) -> Iterator[str]:
    yield f'<h1>{_said(view.agent)}</h1><p class="mute">{_said(view.agent_id)}, in {_said(view.home)}</p>'
    status = view.status
    if status is None:
        yield "<p>It has not said anything yet.</p>"
    else:
        yield f"<p><b>{_said(status['state'])}</b> since {at(status['at'])}; {counted(status['visits'], 'visit')} done</p>"
        if status.get("block"):
            yield from _visit(status)
        yield from _contact(status)
        yield from _troubles(status)
    yield f"<h2>On this machine</h2><p>{cached(view)}; {view.outbox} deltas wait to be sent</p>"
    if status is not None and status.get("site_cache"):
        yield f"<p>{_said(site_cache(status['site_cache']))}</p>"
    if status is not None and status.get("walls"):
        yield f"<p>training process: {_said(status['walls'])}</p>"
    yield from _left(view)


def _visit(status: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>Round {status['round']} of {_said(status['run'])}: {_said(status['block'])}</h2>"
    text = f"{_said(status['phase'])}, step {status['step']} of {status['steps']}"
    if status.get("loss") is not None:
        text += f", loss {status['loss']:.3f}"
    if status.get("tokens_per_s") is not None:
        text += f", {status['tokens_per_s']:,.0f} tokens/s"
    yield f"<p>{text}</p>"
    if status["steps"]:
        yield f'<progress max="{status["steps"]}" value="{status["step"]}" aria-label="steps"></progress>'
    if status.get("trouble"):
        yield f'<p class="bad">held up: {_said(status["trouble"]["code"])}</p>'


def _contact(status: dict[str, Any]) -> Iterator[str]:
    if last := status.get("contact_at"):
        yield f"<p>The coordinator answered last at {at(last)}.</p>"
    if following := status.get("next_contact_at"):
        yield f"<p>It is spoken to again by {at(following)} at the latest.</p>"


def _troubles(status: dict[str, Any]) -> Iterator[str]:
    if errors := status["errors"]:
        lines = "".join(f'<li class="bad">{at(one["error_at"])}: {_said(one["error"])}</li>' for one in reversed(errors))
        yield f'<h2>Last errors</h2><ul>{lines}</ul><p class="mute">As a coordinator may hear them; <code>fedagent status</code> says all of it.</p>'
    if refused := status["takes_no_work_of"]:
        lines = "".join(f"<li>{_said(one['run'])}: {_said(one['reason'])}</li>" for one in refused)
        yield f"<h2>Takes no work of</h2><ul>{lines}</ul>"


def _left(view: StatusReport) -> Iterator[str]:
    yield "<h2>What has left this machine</h2>"
    if not view.sent:
        yield "<p>No delta yet.</p>"
        return
    lines = "".join(
        f'<tr><td>{_said(one.coordinator)}</td><td>{_said(one.run)}</td><td class="n">{one.deltas}</td><td class="n">{one.bytes_sent / 1e6:,.1f}</td>'
        f'<td class="n">{one.bytes_fetched / 1e6:,.1f}</td><td>{at(one.last_at)}</td></tr>'
        for one in reversed(view.sent)
    )
    heading = '<th>for</th><th>run</th><th class="n">deltas</th><th class="n">MB sent</th><th class="n">MB fetched</th><th>last</th>'
    yield f'<div class="wide"><table><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table></div>'


def _said(text: object) -> str:
    """Nothing in it is markup: a coordinator chooses names, and errors quote it."""
    return escape(one_line(str(text)))
