"""The follower: a process that stays, carries out notifications, and keeps conntrackd in sync."""
