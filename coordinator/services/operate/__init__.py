"""What operators do: models, runs, plans, exports, the revocation of an agent."""
