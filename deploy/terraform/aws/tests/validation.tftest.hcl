# What is refused, before anything is made.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
  pools                = {} # quicker
}

run "nobody_administers" {
  command = plan
  variables {
    admin_principal_arns = []
  }
  expect_failures = [var.admin_principal_arns]
}

run "an_assumed_role_administers" {
  command = plan
  variables {
    admin_principal_arns = ["arn:aws:sts::123456789012:assumed-role/admin/me"]
  }
  expect_failures = [var.admin_principal_arns]
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
    api_public_cidrs = ["128.0.0.0/1"]
  }
  expect_failures = [var.api_public_cidrs]
}

run "an_address_that_is_no_range" {
  command = plan
  variables {
    api_public_cidrs = ["203.0.113.7"]
  }
  expect_failures = [var.api_public_cidrs]
}

run "a_private_range_of_everything" {
  command = plan
  variables {
    api_private_cidrs = ["0.0.0.0/0"]
  }
  expect_failures = [var.api_private_cidrs]
}

run "a_name_with_capitals" {
  command = plan
  variables {
    name = "Lading"
  }
  expect_failures = [var.name]
}

run "a_vpc_too_small" {
  command = plan
  variables {
    vpc_cidr = "10.0.0.0/24"
  }
  expect_failures = [var.vpc_cidr]
}

run "one_zone" {
  command = plan
  variables {
    zones = ["eu-central-1a"]
  }
  expect_failures = [var.zones]
}

run "an_unknown_nat" {
  command = plan
  variables {
    nat = "yes"
  }
  expect_failures = [var.nat]
}

run "no_nat_and_no_endpoints" {
  command = plan
  variables {
    nat = "none"
  }
  expect_failures = [var.interface_endpoints]
}

run "a_patch_version" {
  command = plan
  variables {
    kubernetes_version = "1.35.2"
  }
  expect_failures = [var.kubernetes_version]
}

run "an_old_version" {
  command = plan
  variables {
    kubernetes_version = "1.28"
  }
  expect_failures = [var.kubernetes_version]
}

run "logs_for_ever" {
  command = plan
  variables {
    log_retention_days = 0
  }
  expect_failures = [var.log_retention_days]
}

run "no_system_nodes" {
  command = plan
  variables {
    system_nodes = { min = 0 }
  }
  expect_failures = [var.system_nodes]
}

run "spot_of_one_type" {
  command = plan
  variables {
    pools = { l4 = { instance_types = ["g6.2xlarge"], gpus = 1 } }
  }
  expect_failures = [var.pools]
}

run "spot_of_one_type_twice" {
  command = plan
  variables {
    pools = { l4 = { instance_types = ["g6.2xlarge", "g6.2xlarge"], gpus = 1 } }
  }
  expect_failures = [var.pools]
}

run "a_pool_without_nodes" {
  command = plan
  variables {
    pools = { l4 = { instance_types = ["g6.2xlarge", "g6.4xlarge"], gpus = 1, spot_max_nodes = 0, on_demand_max_nodes = 0 } }
  }
  expect_failures = [var.pools]
}

run "three_gpus" {
  command = plan
  variables {
    pools = { l4 = { instance_types = ["g6.2xlarge", "g6.4xlarge"], gpus = 3 } }
  }
  expect_failures = [var.pools]
}

run "a_pool_named_system" {
  command = plan
  variables {
    pools = { system = { instance_types = ["m7i.large", "m6i.large"] } }
  }
  expect_failures = [var.pools]
}

run "a_pool_with_underscores" {
  command = plan
  variables {
    pools = { my_pool = { instance_types = ["m7i.large", "m6i.large"] } }
  }
  expect_failures = [var.pools]
}

run "a_disk_too_small" {
  command = plan
  variables {
    pools = { l4 = { instance_types = ["g6.2xlarge", "g6.4xlarge"], gpus = 1, disk_gb = 20 } }
  }
  expect_failures = [var.pools]
}

run "a_type_that_the_region_lacks" {
  command = plan
  variables {
    pools = { l4 = { instance_types = ["g99.large", "g99.xlarge"], gpus = 1 } }
  }
  expect_failures = [aws_eks_node_group.pool]
}

run "a_bucket_with_dots" {
  command = plan
  variables {
    bucket_name = "my.bucket"
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

run "a_key_by_its_alias" {
  command = plan
  variables {
    bucket_kms_key_arn = "alias/mine"
  }
  expect_failures = [var.bucket_kms_key_arn]
}

run "a_prefix_without_its_slash" {
  command = plan
  variables {
    read_only = [{ bucket = "corpora", prefix = "wiki" }]
  }
  expect_failures = [var.read_only]
}

run "a_prefix_with_a_wildcard" {
  command = plan
  variables {
    read_only = [{ bucket = "corpora", prefix = "wiki*/" }]
  }
  expect_failures = [var.read_only]
}

run "a_bucket_by_its_url" {
  command = plan
  variables {
    read_only = [{ bucket = "s3://corpora", prefix = "" }]
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

run "redis_without_users" {
  command = plan
  variables {
    redis = { user_group_id = "" }
  }
  expect_failures = [var.redis]
}

run "redis_on_an_ec2_type" {
  command = plan
  variables {
    redis = { user_group_id = "lading", node_type = "m7g.large" }
  }
  expect_failures = [var.redis]
}

run "a_zone_twice" {
  command = plan
  variables {
    zones = ["eu-central-1a", "eu-central-1a"]
  }
  expect_failures = [var.zones]
}
