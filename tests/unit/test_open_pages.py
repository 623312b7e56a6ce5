"""A page that nobody looks at keeps no connection: a browser has six to a host, for all its tabs."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

SEEN = """
const node = {dataset: {live: "5"}, querySelector: () => null, addEventListener() {}};
const heard = {};
const document = {
  hidden: %s, getElementById: () => node, querySelectorAll: () => [], addEventListener: (name, act) => { heard[name] = act; },
};
let open = 0;
class EventSource { constructor() { open += 1; this.readyState = 0; } close() { open -= 1; this.readyState = 2; } }
EventSource.CLOSED = 2;
const setTimeout = () => 1;
const counted = [];
const seen = (hidden) => { document.hidden = hidden; heard.visibilitychange?.(); counted.push(open); };
"""
LOOKS = (
    "counted.push(open); for (const hidden of [true, true, false, false, true, false]) seen(hidden); console.log(JSON.stringify(counted));"
)


@pytest.mark.skipif(shutil.which("node") is None, reason="what a browser does is tried with node")
@pytest.mark.parametrize("hidden", [False, True])
def test_only_a_page_that_is_seen_has_a_stream(hidden: bool) -> None:
    script = files("fedcybgd.coordinator.dashboard").joinpath("static/admin.js").read_text(encoding="utf-8")
    told = subprocess.run(
        ["node", "-e", SEEN % json.dumps(hidden) + script + LOOKS], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(told.stdout) == [int(not hidden), 0, 0, 1, 1, 0, 1]
