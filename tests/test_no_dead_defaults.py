"""A field with a default that nothing of ours sets is a feature that does not exist."""

import ast
from collections import defaultdict

from tests.test_architecture import MODULES, inside

FROM_OUTSIDE = {
    "coordinator.domain.run_file": "operators set them",
    "coordinator.settings": "operators set them",
    "agent.settings": "an agent's owner sets them",
    "shared.files.table_format": "both set them",
    "shared.files.preprocessing": "whoever made a model set them, in its preprocessor_config.json",
    "shared.contract": "an older side does not send them yet",
}
"""Modules whose fields are set by what is read: by people, or by the other side."""
IN_A_FILE = {"TrainingOptions": "agent.toml, section training", "Filled": "a form that a browser sends"}
"""The same of single classes."""
FILLS = {"append", "add", "update", "setdefault", "extend"}


def defaults() -> dict[tuple[str, str], int]:
    """(class, field) → its place, of the fields of dataclasses and models that have a default."""
    found: dict[tuple[str, str], int] = {}
    for module in MODULES:
        if any(inside(module.name, outside) for outside in FROM_OUTSIDE) or inside(module.name, "coordinator.db"):
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ClassDef) or not (_is_dataclass(node) or any("Model" in ast.unparse(base) for base in node.bases)):
                continue
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            for place, field in enumerate(fields):
                if field.value is not None and "init=False" not in ast.unparse(field.value):
                    assert isinstance(field.target, ast.Name)
                    found[node.name, field.target.id] = place
    return found


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_every_default_is_set_by_somebody() -> None:
    keywords: dict[str, set[str]] = defaultdict(set)
    places: dict[str, int] = defaultdict(int)
    anywhere: set[str] = set()
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                keywords[name] |= {k.arg for k in node.keywords if k.arg}
                starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
                places[name] = max(places[name], 1000 if starred else len(node.args))
                if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Attribute) and name in FILLS:
                    anywhere.add(node.func.value.attr)
                if name in ("replace", "cls"):
                    anywhere |= {k.arg for k in node.keywords if k.arg}
                if name in ("model_copy", "model_validate"):
                    anywhere |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
            for target in targets:
                anywhere |= {t.attr for t in ast.walk(target) if isinstance(t, ast.Attribute)}
    dead = [
        f"{owner}.{field}"
        for (owner, field), place in defaults().items()
        if owner not in IN_A_FILE and field not in keywords[owner] and places[owner] <= place and field not in anywhere
    ]
    assert dead == []
