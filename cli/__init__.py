"""The front door. Imports lazily, so that `lading --help` starts fast."""
