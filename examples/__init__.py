"""Things to try: the demos, their data and their run files."""
