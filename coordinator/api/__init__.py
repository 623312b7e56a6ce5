"""HTTP for agents and operators: parse, call one service, answer."""
