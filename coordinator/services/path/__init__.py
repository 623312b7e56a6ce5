"""The straight path on the coordinator's side, a file a step.

open_round, claim, lease, serve, receive, submit, judge (with compare), apply_round, gate, gated and harm (where a run has a gate), close_round;
ahead: what the next round will ask for.
"""
