"""Brick films drawn by the computer: solids, actors, sets, scenes, films. Needs numpy, Pillow and PyAV."""
