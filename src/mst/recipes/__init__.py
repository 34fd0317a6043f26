"""Complete, self-describing configurations; a recipe knows only `mst.config`."""
