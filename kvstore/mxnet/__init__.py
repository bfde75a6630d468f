"""Tables on the servers of an MXNet ``dist_sync`` key-value store."""
