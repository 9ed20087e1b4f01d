"""conntrackd: its configuration, its client, its status, and starting it."""
