"""Where a pool comes from: local files, a hub data set, or a mixture of labelled sources."""
