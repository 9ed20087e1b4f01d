"""keepalived: its notifications, its FIFO, and the state that it reports."""
