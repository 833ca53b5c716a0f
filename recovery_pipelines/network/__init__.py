"""Networks for drills: hosts that can be cut off, a replicated database on them, its failover."""
