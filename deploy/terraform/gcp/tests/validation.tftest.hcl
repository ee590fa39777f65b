# What is refused, before anything is made.

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  project = "my-project"
}

run "a_project_by_its_number" {
  command = plan
  variables {
    project = "987654321098"
  }
  expect_failures = [var.project]
}

run "a_zone_for_a_region" {
  command = plan
  variables {
    region = "us-central1-a"
  }
  expect_failures = [var.region]
}

run "zones_of_another_region" {
  command = plan
  variables {
    region = "europe-west4"
  }
  expect_failures = [var.node_zones]
}

run "no_zone" {
  command = plan
  variables {
    node_zones = []
  }
  expect_failures = [var.node_zones]
}

run "a_name_too_long" {
  command = plan
  variables {
    name = "a-name-that-is-too-long"
  }
  expect_failures = [var.name]
}

run "a_control_plane_too_large" {
  command = plan
  variables {
    cidrs = { control_plane = "10.50.32.0/24" }
  }
  expect_failures = [var.cidrs]
}

run "an_unknown_channel" {
  command = plan
  variables {
    release_channel = "FAST"
  }
  expect_failures = [var.release_channel]
}

run "the_whole_internet" {
  command = plan
  variables {
    api_public_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.api_public_cidrs]
}

run "half_of_the_internet" {
  command = plan
  variables {
    api_public_cidrs = ["0.0.0.0/1"]
  }
  expect_failures = [var.api_public_cidrs]
}

run "an_address_that_is_no_range" {
  command = plan
  variables {
    api_private_cidrs = ["10.8.0.1"]
  }
  expect_failures = [var.api_private_cidrs]
}

run "no_system_nodes" {
  command = plan
  variables {
    system_nodes = { min = 0 }
  }
  expect_failures = [var.system_nodes]
}

run "gpus_without_their_name" {
  command = plan
  variables {
    pools = { l4 = { machine_types = ["g2-standard-8"], gpus = 1 } }
  }
  expect_failures = [var.pools]
}

run "gpus_without_their_number" {
  command = plan
  variables {
    pools = { l4 = { machine_types = ["g2-standard-8"], accelerator = "nvidia-l4" } }
  }
  expect_failures = [var.pools]
}

run "no_machines" {
  command = plan
  variables {
    pools = { cpu = { machine_types = [] } }
  }
  expect_failures = [var.pools]
}

run "a_machine_twice" {
  command = plan
  variables {
    pools = { cpu = { machine_types = ["n2-standard-8", "n2-standard-8"] } }
  }
  expect_failures = [var.pools]
}

run "a_pool_without_nodes" {
  command = plan
  variables {
    pools = { l4 = { machine_types = ["g2-standard-8"], accelerator = "nvidia-l4", gpus = 1, spot_max_nodes = 0, on_demand_max_nodes = 0 } }
  }
  expect_failures = [var.pools]
}

run "a_pool_in_another_region" {
  command = plan
  variables {
    pools = { l4 = { machine_types = ["g2-standard-8"], accelerator = "nvidia-l4", gpus = 1, zones = ["europe-west4-a"] } }
  }
  expect_failures = [var.pools]
}

run "a_pool_named_system" {
  command = plan
  variables {
    pools = { system = { machine_types = ["n2-standard-8"] } }
  }
  expect_failures = [var.pools]
}

run "a_pool_with_a_long_name" {
  command = plan
  variables {
    pools = { embeddings-large = { machine_types = ["n2-standard-8"] } }
  }
  expect_failures = [var.pools]
}

run "a_disk_too_small" {
  command = plan
  variables {
    pools = { cpu = { machine_types = ["n2-standard-8"], disk_gb = 20 } }
  }
  expect_failures = [var.pools]
}

run "a_bucket_with_capitals" {
  command = plan
  variables {
    bucket_name = "My-Bucket"
  }
  expect_failures = [var.bucket_name]
}

run "versions_kept_for_no_time" {
  command = plan
  variables {
    bucket_noncurrent_days = 0
  }
  expect_failures = [var.bucket_noncurrent_days]
}

run "a_key_by_its_name" {
  command = plan
  variables {
    bucket_kms_key = "mine"
  }
  expect_failures = [var.bucket_kms_key]
}

run "a_prefix_without_its_slash" {
  command = plan
  variables {
    read_only = [{ bucket = "corpora", prefix = "wiki" }]
  }
  expect_failures = [var.read_only]
}

run "a_prefix_that_ends_the_condition" {
  command = plan
  variables {
    read_only = [{ bucket = "corpora", prefix = "x') || true || ('/" }]
  }
  expect_failures = [var.read_only]
}

run "a_bucket_by_its_url" {
  command = plan
  variables {
    read_only = [{ bucket = "gs://corpora", prefix = "" }]
  }
  expect_failures = [var.read_only]
}

run "writing_everywhere_in_a_bucket" {
  command = plan
  variables {
    read_write = [{ bucket = "lake", prefix = "" }]
  }
  expect_failures = [var.read_write]
}

run "an_old_redis" {
  command = plan
  variables {
    redis = { version = "REDIS_6_X" }
  }
  expect_failures = [var.redis]
}

run "an_unknown_tier" {
  command = plan
  variables {
    redis = { tier = "HA" }
  }
  expect_failures = [var.redis]
}
