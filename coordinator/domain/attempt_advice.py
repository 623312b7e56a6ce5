"""Why attempts come to nothing, and what helps."""

from fedcybgd.coordinator.domain.assignment import TakenBack

MENDED_BY: dict[str, str] = {
    "out_of_memory": "a smaller train.batch_size or task.max_length, or a lower limits.memory_gb in its agent.toml, so that codecs are planned by it",
    "memory_limit": "raise limits.memory_gb in its agent.toml, or let `compression.policy: auto` plan by it (`fedcoord plan`)",
    "disk_limit": "raise limits.disk_gb in its agent.toml",
    "disk_full": "free space on its disk",
    "disk_unwritable": "give its home back to the user that it runs as (`fedagent check`)",
    "data_invalid": "mend its rows: `fedagent check` on its machine names the first that is wrong",
    "non_finite_loss": "a lower train.learning_rate, or `train.precision: float32`; if it is one agent alone, its rows",
    "trainer_died": "look into its log: the system ends processes that take too much memory. Free some there, or a smaller train.batch_size or "
    "task.max_length",
    "delta_refused": "a rule of its policy.toml, or a limit of the coordinator, is in the way; its log names it",
    "stalled": "its machine stands still or is far too slow: fewer train.steps, or limits.hours in its agent.toml",
    "shard_corrupt": "its disk or what is between it and the coordinator spoils bytes: look at both",
    TakenBack.LAPSED: "its machine sleeps or its line is cut for longer than schedule.lease_s; raise that, or mend the line",
    TakenBack.STILL: "its machine stands still or is far too slow: fewer train.steps, or limits.hours in its agent.toml",
    TakenBack.TOO_LONG: "fewer train.steps or epochs: its visits take longer than an attempt may",
    TakenBack.LATE: "raise schedule.wave_deadline_s, or leave slow agents out of waves",
}
"""A reason → what helps."""
