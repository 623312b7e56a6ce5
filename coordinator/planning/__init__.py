"""Plans: what a run asks of agents, estimated from shapes. Pure, but no rules."""
