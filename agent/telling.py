"""What the deltas of a run can tell of the rows that they were trained on, as far as is known: said before consent."""

from collections.abc import Mapping

from fedcybgd.shared.contract.adapters import ADAPTERS
from fedcybgd.shared.contract.agents import RunOffer
from fedcybgd.shared.contract.words import CLASSIFICATIONS

FEW_ROWS = 64
"""Rows of a visit, below which single rows stand out."""
LABELS_GO = "tell_labels: with each delta goes how many rows of each label its visit trained on"
FIRST_MEANS = "In a run whose head begins at class means its first delta is the mean of what the model makes of the rows of each label"


def what_deltas_tell(run: RunOffer) -> list[str]:
    """Sentences for the owner of rows; docs/running-an-agent.md has the measurements behind them."""
    visit = run.visits
    if visit is None:
        return ["its coordinator does not say which blocks are trained and how: reckon with all tokens and labels of the rows"]
    found = []
    if "embeddings" in visit.blocks and run.task == "image-classification":
        found.append(
            "a delta of the embeddings is made of the patches of your images: those of a visit of few rows can be rebuilt from it "
            "(APRIL, CVPR 2022)"
        )
    elif "embeddings" in visit.blocks:
        found.append(
            "a delta of the embeddings names every token of the rows that a visit used, and position rows say how long the longest is"
        )
        if run.task == "causal-lm":
            found.append("where the output matrix is tied to the embeddings all rows of it move, and most tokens can still be told")
    if "head" in visit.blocks and run.task in CLASSIFICATIONS:
        found.append(
            "a delta of the head shows exactly which labels your rows have, for it changes what belongs to these alone; after a visit with one "
            f"row, which label that row has. {FIRST_MEANS}; of a single row that is sent only if you say tell_labels = true"
        )
    rows = None if visit.steps is None else visit.steps * visit.batch_size
    if ADAPTERS in visit.blocks:
        found.append("every visit trains adapters beside matrices of the layers: one delta tells of all of these layers")
    elif visit.all_at_once:
        found.append(
            "every visit trains all of these blocks at once: the agent gets the whole model exact, and one delta tells of all blocks"
        )
    if visit.corrects is not None:
        which = "all of these layers" if visit.corrects == "all" else "these layers from its own upwards"
        found.append(f"every visit trains factors beside matrices of layers that are not its own: one delta tells of {which}")
    if visit.weighed_by_rows:
        found.append("a delta counts by the rows that it was trained on, and says how many they are")
    if visit.batch_size == 1:
        found.append("steps are on single rows (batch_size 1): what is learned of one row is not mixed with others")
    if rows is not None and rows <= FEW_ROWS:
        found.append(f"a visit uses {rows} rows at the most: they can all but be read from what it names")
    if visit.delta_patches:
        found.append("other agents may fetch this agent's deltas, not only the coordinator (compression.delta_patches)")
    return found or ["of its blocks no way is known to read single tokens or labels from a delta; it is made from your rows all the same"]


def what_counts_tell(counts: Mapping[object, int], labels: int | None) -> str:
    """For the owner of rows with `tell_labels`: what the coordinator learns of them beyond the deltas."""
    return (
        f"{LABELS_GO}; of these rows {len(counts)} of {labels or '?'} labels, "
        f"{min(counts.values(), default=0):,} to {max(counts.values(), default=0):,} rows each. The coordinator keeps that, and a signed provenance file may show "
        f"the shares. {FIRST_MEANS}"
    )
