"""The sub-commands of `fedcoord` that speak to a coordinator over its REST API."""
