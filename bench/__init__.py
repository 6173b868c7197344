"""Where speed and behaviour at scale are known: each module runs by itself and prints a table."""
