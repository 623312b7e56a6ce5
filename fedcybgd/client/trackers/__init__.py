"""Programs of others that keep curves of experiments, each behind the protocol `Tracker`."""
