"""Two booted Debian machines with systemd, wired as the lab's pair is."""
