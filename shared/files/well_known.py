"""What columns are often called that hold a field under another name."""

from collections.abc import Collection, Sequence

from fedcybgd.shared.contract.words import Task
from fedcybgd.shared.files.tables import FIELDS

ALIASES: dict[Task, dict[str, Sequence[str]]] = {
    "text-classification": {
        "text": ("sentence", "sentence1", "question", "utterance", "review", "content", "premise"),
        "text_pair": ("sentence2", "hypothesis"),
        "label": ("intent", "class", "category", "target", "labels"),
    },
    "image-classification": {
        "image": ("img", "picture", "pixels"),
        "label": ("labels", "class", "category", "target", "fine_label"),
    },
    "causal-lm": {"text": ("content",), "prompt": ("question", "instruction"), "completion": ("answer", "response", "output")},
    "extractive-qa": {"question": ("query",), "context": ("passage", "paragraph")},
}
"""What columns are called where they are not called as their field"""


def clear_ones(columns: Collection[str]) -> dict[str, str]:
    """Field → column, where nobody could mean anything else: of each field one column alone has a well-known name, and no two tasks differ."""
    found: dict[str, str] = {}
    fields_of: dict[str, str] = {}
    for task, aliases in ALIASES.items():
        candidates = {
            field: [field] if field in columns else [name for name in names if name in columns] for field, names in aliases.items()
        }
        needed = FIELDS[task]
        for fields in needed.alternatives:
            if all(len(candidates.get(field, [field] if field in columns else [])) == 1 for field in fields):
                for field in (*fields, *(one for one in needed.optional if len(candidates.get(one, ())) == 1)):
                    column = candidates.get(field, [field])[0]
                    if found.setdefault(field, column) != column or fields_of.setdefault(column, field) != field:
                        return {}
    return {field: column for field, column in found.items() if field != column}
