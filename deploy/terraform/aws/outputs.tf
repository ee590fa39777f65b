output "cluster_name" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.this.name
}

output "region" {
  description = "Where all of this is."
  value       = local.region
}

output "bucket" {
  description = "The bucket of jobs/, outputs/ and sources/."
  value       = aws_s3_bucket.data.bucket
}

output "image_repositories" {
  description = "Where each image is pushed to."
  value       = { for name, repository in aws_ecr_repository.image : name => repository.repository_url }
}

output "vpc_id" {
  description = "The VPC, for peering or a bastion."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "The private subnets, one in each zone."
  value       = [for subnet in aws_subnet.private : subnet.id]
}

output "redis_host" {
  description = "The primary's name, where ElastiCache is asked for; port 6379, TLS. Else null."
  value       = one([for group in aws_elasticache_replication_group.redis : group.primary_endpoint_address])
}

locals {
  system = { "lading.dev/pool" = "system" }
}

output "helm_values" {
  description = "For Lading's chart: terraform output -raw helm_values > values-cloud.yaml. Pools come from the chart's presets."
  value = yamlencode(merge(
    {
      cloud    = "eks"
      jobs     = "s3://${local.bucket_name}/jobs"
      settings = { roots = join(",", [for prefix in ["outputs", "sources"] : "s3://${local.bucket_name}/${prefix}"]) }
      env      = { AWS_REGION = local.region, AWS_DEFAULT_REGION = local.region } # s3fs reads the second alone
      images = {
        producer   = { repository = aws_ecr_repository.image["lading-producer"].repository_url }
        workerCpu  = { repository = aws_ecr_repository.image["lading-worker-cpu"].repository_url }
        workerCuda = { repository = aws_ecr_repository.image["lading-worker-cuda"].repository_url }
      }
      # Nodes of a pool without GPUs carry this taint, those with GPUs NVIDIA's, which the chart knows.
      poolDefaults = { tolerations = [{ key = "lading.dev/pool", operator = "Exists", effect = "NoSchedule" }] }
      scheduler    = { nodeSelector = local.system }
      exporter     = { nodeSelector = local.system }
      submissions  = { nodeSelector = local.system }
      serviceAccounts = {
        for role, name in var.service_accounts : role => { name = name, annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.pod[role].arn } }
      }
    },
    { # without ElastiCache: on which nodes the chart's own may run
      redis = merge({ nodeSelector = local.system }, {
        for group in aws_elasticache_replication_group.redis : "host" => group.primary_endpoint_address
      })
      networkPolicy = { redis = { cidrs = var.redis == null ? [] : [for subnet in aws_subnet.private : subnet.cidr_block] } }
    },
  ))
}

output "cluster_autoscaler_values" {
  description = "For the chart cluster-autoscaler: terraform output -raw cluster_autoscaler_values > FILE."
  value = yamlencode({
    autoDiscovery = { clusterName = var.name }
    awsRegion     = local.region
    rbac = {
      serviceAccount = {
        name        = "cluster-autoscaler"
        annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.autoscaler.arn }
      }
    }
    # Spot before on demand. A spot group that gets no node within max-node-provision-time is left alone for a while, and the next is tried.
    expanderPriorities = { "20" = [".*-spot-.*"], "10" = [".*-on-demand-.*"], "1" = [".*"] }
    extraArgs = {
      expander                      = "priority"
      max-node-provision-time       = "10m"
      scale-down-unneeded-time      = "5m"
      skip-nodes-with-local-storage = false # workers' caches are emptyDirs, and may go
    }
    nodeSelector = local.system
  })
}

output "termination_handler_values" {
  description = "For the chart aws-node-termination-handler; null without interruption_queue."
  value = one([
    for queue in aws_sqs_queue.interruptions : yamlencode({
      enableSqsTerminationDraining = true
      queueURL                     = queue.url
      awsRegion                    = local.region
      serviceAccount = {
        name        = "aws-node-termination-handler"
        annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.termination_handler[0].arn }
      }
      nodeSelector = local.system
    })
  ])
}
