"""The use cases: load, decide with the domain, save. They never commit; the request or the job does."""
