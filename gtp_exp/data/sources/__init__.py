"""Load a pool from local files, a hub data set, or a mixture of labelled sources."""
