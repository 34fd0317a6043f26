"""Words in, tables out: how commands take options and show results."""
