# What changes where it is asked for.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
}

run "a_public_api_for_named_addresses" {
  command = plan

  variables {
    api_public_cidrs  = ["203.0.113.7/32"]
    api_private_cidrs = ["10.8.0.0/16"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.7/32"])
    error_message = "the public endpoint is open to others than those named"
  }
  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "nodes would go through the internet to their own control plane"
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.api["10.8.0.0/16"].from_port == 443
    error_message = "the VPN does not reach the private endpoint"
  }
}

run "redis_with_tls_and_users" {
  command = apply

  variables {
    redis = { user_group_id = "lading" }
  }

  assert {
    condition     = aws_elasticache_replication_group.redis["this"].transit_encryption_enabled && aws_elasticache_replication_group.redis["this"].transit_encryption_mode == "required" && tobool(aws_elasticache_replication_group.redis["this"].at_rest_encryption_enabled)
    error_message = "Redis answers without TLS, or its disk is not encrypted"
  }
  assert {
    condition     = aws_elasticache_replication_group.redis["this"].user_group_ids == toset(["lading"]) && aws_elasticache_replication_group.redis["this"].auth_token == null
    error_message = "Redis has no users, or a password in Terraform's state"
  }
  assert {
    condition     = one(aws_elasticache_parameter_group.redis["this"].parameter).name == "maxmemory-policy" && one(aws_elasticache_parameter_group.redis["this"].parameter).value == "noeviction"
    error_message = "a full Redis would drop queues"
  }
  assert {
    condition     = aws_elasticache_replication_group.redis["this"].num_cache_clusters == 2 && aws_elasticache_replication_group.redis["this"].automatic_failover_enabled
    error_message = "one lost server is an outage"
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.redis["this"].cidr_ipv4 == null && aws_vpc_security_group_ingress_rule.redis["this"].referenced_security_group_id == aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
    error_message = "Redis is open to others than the cluster"
  }
  assert {
    condition     = yamldecode(output.helm_values).redis.host == output.redis_host && length(yamldecode(output.helm_values).networkPolicy.redis.cidrs) == 3
    error_message = "the chart would not find Redis, or not be let through to it"
  }
}

run "no_way_out" {
  command = plan

  variables {
    nat                 = "none"
    interface_endpoints = ["autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "logs", "sqs", "sts"]
  }

  assert {
    condition     = length(aws_nat_gateway.this) + length(aws_internet_gateway.this) + length(aws_subnet.public) + length(aws_route.nat) + length(aws_eip.nat) == 0
    error_message = "there is a way to the internet"
  }
  assert {
    condition     = length(aws_vpc_endpoint.interface) == 8 && alltrue([for endpoint in aws_vpc_endpoint.interface : tobool(endpoint.private_dns_enabled)])
    error_message = "nodes cannot reach what they need"
  }
}

run "nat_in_each_zone" {
  command = plan

  variables {
    nat   = "per-zone"
    zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c", "eu-central-1d"]
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 4 && length(aws_route.nat) == 4 && length(aws_subnet.private) == 4
    error_message = "a zone goes out through another one"
  }
}

run "on_demand_alone" {
  command = plan

  variables {
    pools = { l4 = { instance_types = ["g6.2xlarge"], gpus = 1, spot_max_nodes = 0, on_demand_max_nodes = 9 } }
  }

  assert {
    condition     = keys(aws_eks_node_group.pool) == ["l4-on-demand"] && aws_eks_node_group.pool["l4-on-demand"].scaling_config[0].max_size == 9
    error_message = "a pool without spot has other groups than the one on demand"
  }
}

run "what_the_chart_is_told" {
  command = apply

  assert {
    condition     = yamldecode(output.helm_values).jobs == "s3://lading-123456789012-eu-central-1/jobs" && yamldecode(output.helm_values).cloud == "eks"
    error_message = "jobs would be registered elsewhere"
  }
  assert {
    condition     = yamldecode(output.helm_values).env == { AWS_REGION = "eu-central-1", AWS_DEFAULT_REGION = "eu-central-1" }
    error_message = "one of the two clients of S3 would not know the region"
  }
  assert {
    condition     = alltrue([for role in ["worker", "scheduler", "producer"] : yamldecode(output.helm_values).serviceAccounts[role].annotations["eks.amazonaws.com/role-arn"] == aws_iam_role.pod[role].arn && yamldecode(output.helm_values).serviceAccounts[role].name == "lading-${role}"])
    error_message = "pods would have no identity"
  }
}
