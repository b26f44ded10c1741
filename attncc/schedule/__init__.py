"""Spec IR -> Tile IR: the schedules and what they share."""
