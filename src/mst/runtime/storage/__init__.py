"""Files and folders that the package writes: atomically, locked, appended, never over the user's own."""
