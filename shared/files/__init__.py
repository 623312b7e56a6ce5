"""Files and their formats, as bytes and rows. No torch."""
