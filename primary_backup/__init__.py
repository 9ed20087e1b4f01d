"""Drive conntrackd through keepalived's state changes, and prove what was recovered."""
