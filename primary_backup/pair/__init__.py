"""The pair channel: what one follower reports to the other, each second."""
