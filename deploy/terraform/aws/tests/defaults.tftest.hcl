# What the module makes when it is told nothing but who administers the cluster.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
}

run "idle_pools_cost_nothing" {
  command = plan

  assert {
    condition     = alltrue([for group in aws_eks_node_group.pool : group.scaling_config[0].min_size == 0 && group.scaling_config[0].desired_size == 0])
    error_message = "a group of a pool would keep nodes without work"
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.pool : group.scaling_config[0].max_size >= 1])
    error_message = "a group of a pool could never have a node"
  }
  assert {
    condition     = aws_eks_node_group.system.capacity_type == "ON_DEMAND" && aws_eks_node_group.system.scaling_config[0].min_size == 2
    error_message = "what wakes the pools needs nodes of its own, not on spot"
  }
  assert {
    condition     = length(aws_elasticache_replication_group.redis) == 0 && length(aws_vpc_endpoint.interface) == 0 && length(aws_nat_gateway.this) == 1
    error_message = "something is always on that nobody asked for"
  }
  assert {
    condition     = aws_eks_cluster.this.upgrade_policy[0].support_type == "STANDARD"
    error_message = "extended support would begin by itself, at six times the price"
  }
}

run "spot_finds_capacity" {
  command = plan

  assert {
    condition     = toset([for name, group in aws_eks_node_group.pool : name if group.capacity_type == "SPOT"]) == toset(["cpu-spot", "l4-spot", "a10g-spot", "a100-spot", "h100-spot"])
    error_message = "each pool has a spot group, and only those are spot"
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.pool : length(group.instance_types) > 1 if group.capacity_type == "SPOT"])
    error_message = "a spot group has a single instance type"
  }
  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.pool : contains(keys(aws_eks_node_group.pool), replace(name, "-spot", "-on-demand"))])
    error_message = "a pool has nothing to fall back to"
  }
  assert {
    condition     = startswith(aws_eks_node_group.pool["l4-spot"].instance_types[0], "g6.") && startswith(aws_eks_node_group.pool["h100-spot"].instance_types[0], "p5")
    error_message = "a pool's nodes have other GPUs than its name says"
  }
}

run "pods_find_their_nodes" {
  command = plan

  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.pool : group.labels["lading.dev/pool"] == split("-", name)[0] && "${group.labels["lading.dev/pool"]}-${group.labels["lading.dev/capacity"]}" == name])
    error_message = "a group's labels are not those that the chart's pools select by"
  }
  assert {
    condition = alltrue([
      for name, group in aws_eks_node_group.pool :
      one(group.taint).key == (startswith(name, "cpu-") ? "lading.dev/pool" : "nvidia.com/gpu") && one(group.taint).value == (startswith(name, "cpu-") ? "cpu" : "present") && one(group.taint).effect == "NO_SCHEDULE"
    ])
    error_message = "a group does not carry the taint that the chart's pools tolerate, and nothing else does"
  }
  assert {
    condition     = alltrue([for name, group in aws_eks_node_group.pool : (group.ami_type == "AL2023_x86_64_NVIDIA") == !startswith(name, "cpu-")])
    error_message = "nodes with GPUs need the image with NVIDIA's driver"
  }
}

run "the_api_is_private" {
  command = plan

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access && !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "the API server is on the internet"
  }
  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.api) == 0
    error_message = "the API server answers others than the nodes"
  }
  assert {
    condition     = aws_eks_cluster.this.encryption_config[0].resources == toset(["secrets"]) && aws_kms_key.secrets.enable_key_rotation
    error_message = "Secrets lie in etcd without a key of our own"
  }
  assert {
    condition     = aws_eks_cluster.this.enabled_cluster_log_types == toset(["api", "audit", "authenticator", "controllerManager", "scheduler"])
    error_message = "a log of the control plane is not kept"
  }
  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API" && !aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions
    error_message = "whoever ran Terraform is an administrator without being named"
  }
  assert {
    condition     = keys(aws_eks_access_entry.admin) == ["arn:aws:iam::123456789012:role/admin"]
    error_message = "others than those named administer the cluster"
  }
}

run "nodes_are_closed" {
  command = plan

  assert {
    condition     = alltrue([for template in aws_launch_template.node : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "pods reach the nodes' metadata, and with it the nodes' role"
  }
  assert {
    condition     = alltrue([for template in aws_launch_template.node : tobool(template.block_device_mappings[0].ebs[0].encrypted)])
    error_message = "a node's disk is not encrypted"
  }
  assert {
    condition     = length(aws_subnet.private) == 3 && alltrue([for subnet in aws_subnet.private : subnet.map_public_ip_on_launch != true])
    error_message = "nodes get public addresses"
  }
  assert {
    condition     = length(distinct(concat([for subnet in aws_subnet.private : subnet.cidr_block], [for subnet in aws_subnet.public : subnet.cidr_block]))) == 4
    error_message = "subnets overlap"
  }
  assert {
    condition     = jsondecode(aws_eks_addon.network["vpc-cni"].configuration_values).enableNetworkPolicy == "true"
    error_message = "nothing enforces the chart's network policies"
  }
}

run "the_bucket_is_closed" {
  command = plan

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.data.block_public_acls, aws_s3_bucket_public_access_block.data.block_public_policy,
      aws_s3_bucket_public_access_block.data.ignore_public_acls, aws_s3_bucket_public_access_block.data.restrict_public_buckets,
    ])
    error_message = "the bucket can be made public"
  }
  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.data.rule).apply_server_side_encryption_by_default[0].sse_algorithm == "AES256"
    error_message = "objects are not encrypted"
  }
  assert {
    condition = anytrue([
      for statement in jsondecode(aws_s3_bucket_policy.data.policy).Statement :
      statement.Effect == "Deny" && statement.Principal == "*" && statement.Action == "s3:*" && statement.Condition.Bool["aws:SecureTransport"] == "false"
      && contains(statement.Resource, "arn:aws:s3:::lading-123456789012-eu-central-1/*")
    ])
    error_message = "the bucket answers without TLS"
  }
  assert {
    condition     = anytrue([for rule in aws_s3_bucket_lifecycle_configuration.data.rule : rule.status == "Enabled" && try(rule.abort_incomplete_multipart_upload[0].days_after_initiation <= 7, false)])
    error_message = "uploads that never ended stay, and are paid for, for ever"
  }
  assert {
    condition     = !aws_s3_bucket.data.force_destroy && alltrue([for repository in aws_ecr_repository.image : !repository.force_delete])
    error_message = "`terraform destroy` would delete outputs and images"
  }
}

run "images_stay_what_they_are" {
  command = plan

  assert {
    condition     = keys(aws_ecr_repository.image) == ["lading-producer", "lading-worker-cpu", "lading-worker-cuda"]
    error_message = "an image of deploy/docker has no repository"
  }
  assert {
    condition     = alltrue([for repository in aws_ecr_repository.image : repository.image_tag_mutability == "IMMUTABLE" && repository.image_scanning_configuration[0].scan_on_push])
    error_message = "a tag can be moved, or an image is not scanned"
  }
}
