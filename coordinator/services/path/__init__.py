"""The straight path on the coordinator's side, a file a step: open_round, claim, lease, serve, submit, judge, apply_round, close_round."""
