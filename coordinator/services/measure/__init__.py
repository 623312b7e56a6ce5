"""What only tells how a run goes: calibration, losses, scores."""
