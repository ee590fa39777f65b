# ElastiCache, where it is asked for. It writes no append-only file: its copies are replicas and snapshots, so a failover may lose the
# newest messages. Shards come back from the manifests; requests of applications that were not answered do not.

locals {
  redis = var.redis == null ? {} : { this = var.redis }
}

resource "aws_elasticache_subnet_group" "redis" {
  for_each   = local.redis
  name       = "${var.name}-redis"
  subnet_ids = [for subnet in aws_subnet.private : subnet.id]
  tags       = var.tags
}

resource "aws_elasticache_parameter_group" "redis" {
  for_each = local.redis
  name     = "${var.name}-redis"
  family   = "redis${split(".", each.value.engine_version)[0]}"
  tags     = var.tags
  parameter {
    name  = "maxmemory-policy"
    value = "noeviction" # with any other a full Redis drops queues
  }
}

resource "aws_security_group" "redis" {
  for_each    = local.redis
  name        = "${var.name}-redis"
  description = "Redis, from the cluster's nodes and pods"
  vpc_id      = aws_vpc.this.id
  tags        = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "redis" {
  for_each                     = local.redis
  security_group_id            = aws_security_group.redis["this"].id
  referenced_security_group_id = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  description                  = "Nodes and pods of the cluster"
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
}

resource "aws_elasticache_replication_group" "redis" {
  for_each                   = local.redis
  replication_group_id       = "${var.name}-redis"
  description                = "Queues of ${var.name}"
  engine                     = "redis"
  engine_version             = each.value.engine_version
  node_type                  = each.value.node_type
  num_cache_clusters         = 1 + each.value.replicas
  automatic_failover_enabled = each.value.replicas > 0
  multi_az_enabled           = each.value.replicas > 0
  port                       = 6379
  parameter_group_name       = aws_elasticache_parameter_group.redis["this"].name
  subnet_group_name          = aws_elasticache_subnet_group.redis["this"].name
  security_group_ids         = [aws_security_group.redis["this"].id]
  user_group_ids             = [each.value.user_group_id]
  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  at_rest_encryption_enabled = true
  snapshot_retention_limit   = each.value.snapshot_days
  tags                       = var.tags
}
