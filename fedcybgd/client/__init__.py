"""A coordinator as its operator speaks to it: `Client`, with an object for each noun and typed answers."""
