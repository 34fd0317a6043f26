"""Scenes, shapes and textures that are drawn, not downloaded."""
