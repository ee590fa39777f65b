# The example composes the module, and says what the chart needs.

mock_provider "google" {
  source = "../../gcp/tests/mocks"
}

variables {
  project = "my-project"
}

run "with_the_charts_redis" {
  command = apply

  assert {
    condition     = output.redis_host == null && yamldecode(output.helm_values).jobs == "gs://${output.bucket}/jobs"
    error_message = "the chart would be told something else than what was made"
  }
}

run "with_memorystore" {
  command = apply

  variables {
    memorystore = true
  }

  assert {
    condition     = yamldecode(output.helm_values).redis.host == output.redis_host
    error_message = "the chart would look for Redis elsewhere"
  }
}
