# The example composes the module, and says what the chart needs.

mock_provider "aws" {
  source = "../../aws/tests/mocks"
}

variables {
  region               = "eu-central-1"
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
}

run "with_the_charts_redis" {
  command = apply

  assert {
    condition     = output.redis_host == null && yamldecode(output.helm_values).jobs == "s3://${output.bucket}/jobs"
    error_message = "the chart would be told something else than what was made"
  }
}

run "with_elasticache" {
  command = apply

  variables {
    redis_user_group = "lading"
  }

  assert {
    condition     = yamldecode(output.helm_values).redis.host == output.redis_host
    error_message = "the chart would look for Redis elsewhere"
  }
}
