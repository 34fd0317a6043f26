"""The process around the work: devices, seeding, logging, run folders, result files."""
