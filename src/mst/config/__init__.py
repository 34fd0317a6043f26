"""Frozen configuration: schema, loading with overrides, derived plan."""
