"""Tile IR -> text: one printer a target. Nothing here knows attention."""
