"""The metrics of a coordinator: each with its labels, which are words of ours; no name of an agent is one."""

from fedcybgd.shared.contract.metrics import Metric

RUNS_TOLD = 50
"""Runs that have not ended of which metrics tell by name, the newest ones."""

COUNTED: tuple[Metric, ...] = (
    Metric("fedcoord_rounds_closed_total", "counter", "rounds that were applied and closed"),
    Metric("fedcoord_round_seconds", "histogram", "from the opening of a round until it is closed"),
    Metric("fedcoord_leases_total", "counter", "assignments that were leased, renewals apart"),
    Metric("fedcoord_queue_seconds", "histogram", "how long an assignment waited before it was leased"),
    Metric("fedcoord_visit_seconds", "histogram", "from the lease of an assignment until its delta was submitted"),
    Metric("fedcoord_attempts_failed_total", "counter", "attempts that came to nothing, by reason", ("reason",)),
    Metric("fedcoord_admissions_total", "counter", "deltas that were judged; reason: the rule by which they were rejected", ("verdict", "reason")),
    Metric("fedcoord_judge_seconds", "histogram", "from the submission of a delta until it was judged"),
    Metric("fedcoord_bytes_total", "counter", "bytes that crossed the wire: shard, patch, file (down), delta (up)", ("kind",)),
    Metric("fedcoord_jobs_total", "counter", "jobs that ended, by kind and how", ("kind", "state")),
    Metric("fedcoord_job_queue_seconds", "histogram", "how long a job waited for its lane", ("lane",)),
    Metric("fedcoord_job_seconds", "histogram", "how long a job took, from the start that came to something", ("kind",)),
    Metric("fedcoord_events_total", "counter", "events that were written down", ("level",)),
)  # fmt: skip
"""Counted by this process since its start: with several coordinators on a database, the sum is what happened."""

GAUGES: tuple[Metric, ...] = (
    Metric("fedcoord_agents", "gauge", "agents by state", ("state",)),
    Metric("fedcoord_agents_quarantined", "gauge", "agents in quarantine"),
    Metric("fedcoord_runs", "gauge", "runs by state", ("state",)),
    Metric("fedcoord_assignments", "gauge", "assignments that wait (pending), are held (leased) or are judged (submitted)", ("state",)),
    Metric("fedcoord_oldest_pending_seconds", "gauge", "for how long the oldest assignment of a running run has waited for an agent"),
    Metric("fedcoord_jobs", "gauge", "jobs that wait, run or have failed", ("lane", "state")),
    Metric("fedcoord_oldest_job_seconds", "gauge", "for how long the oldest queued job has waited"),
    Metric("fedcoord_engine_still_seconds", "gauge", "for how long an engine with a job has used no processor, at the most"),
    Metric("fedcoord_run_rounds", "gauge", "rounds that a run has in all, of the newest that have not ended", ("run",)),
    Metric("fedcoord_run_rounds_done", "gauge", "rounds that a run has done", ("run",)),
    Metric("fedcoord_run_paused", "gauge", "1 while a run that has begun is paused, 0 while it goes on", ("run",)),
    Metric("fedcoord_run_loss", "gauge", "the last held-out loss of a run that has not ended, in nats", ("run",)),
    Metric("fedcoord_run_accuracy", "gauge", "the last held-out accuracy of a run that has not ended, 0 to 1", ("run",)),
    Metric("fedcoord_waiting_claims", "gauge", "agents whose claims wait at this process"),
    Metric("fedcoord_memory_bytes", "gauge", "memory of the web process"),
    Metric("fedcoord_cpu_seconds_total", "counter", "processor seconds of the web process"),
    Metric("fedcoord_info", "gauge", "1; the version of the program", ("version",)),
)  # fmt: skip
"""Read when they are asked for, most from the database: with several coordinators on it each says the same, and a maximum is right."""
METRICS = COUNTED + GAUGES
