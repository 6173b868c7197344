"""Makes a site of the documents: `make docs`."""
