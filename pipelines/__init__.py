"""What a job is: spec, sources, manifest, sinks. No torch."""
