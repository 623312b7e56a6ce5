"""One file a state machine: the only places where a state changes, with all that a transition changes beside it."""
