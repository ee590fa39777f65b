"""The process that owns a device: read, prepare, pack, run, write, publish."""
