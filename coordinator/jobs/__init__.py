"""Where engine functions run: processes of their own, one a lane."""
