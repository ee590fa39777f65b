# One small group that is always there, and for each of Lading's pools a group of spot nodes and one on demand, both from zero.

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
  tags = var.tags
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each   = toset(["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryPullOnly"])
  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}

# Not every type is to be had in every zone, the large ones in few.
data "aws_ec2_instance_type_offerings" "pool" {
  for_each      = var.pools
  location_type = "availability-zone"
  filter {
    name   = "instance-type"
    values = each.value.instance_types
  }
  filter {
    name   = "location"
    values = local.zones
  }
}

locals {
  offered = {
    for name, pool in var.pools : name => {
      instance_types = [for type in pool.instance_types : type if contains(data.aws_ec2_instance_type_offerings.pool[name].instance_types, type)]
      zones          = [for zone in local.zones : zone if contains(data.aws_ec2_instance_type_offerings.pool[name].locations, zone)]
    }
  }

  # A group's name begins with its pool and ends with its capacity: Cluster Autoscaler's priorities go by it.
  groups = merge([
    for name, pool in var.pools : {
      for capacity, most in { spot = pool.spot_max_nodes, on-demand = pool.on_demand_max_nodes } : "${name}-${capacity}" => {
        pool                       = name
        capacity                   = capacity
        max                        = most
        instance_types             = local.offered[name].instance_types
        gpus                       = pool.gpus
        # Keeps others off, who would hold the node when the pool's work is done; the chart's pools tolerate it.
        taint   = pool.gpus > 0 ? { key = "nvidia.com/gpu", value = "present" } : { key = "lading.dev/pool", value = name }
        disk_gb = pool.disk_gb
        labels = merge(
          { "lading.dev/pool" = name, "lading.dev/capacity" = capacity },
          # The first says to Cluster Autoscaler that GPUs are still to appear on a fresh node, so that it does not start a second; the other
          # brings NVIDIA's device plugin there.
          pool.gpus > 0 ? { "k8s.amazonaws.com/accelerator" = name, "nvidia.com/gpu.present" = "true" } : {},
        )
      } if most > 0
    }
  ]...)

  # What Cluster Autoscaler cannot know of a group without nodes. It finds the groups by tags that EKS sets.
  template_tags = merge([
    for name, group in local.groups : merge(
      { for label, value in group.labels : "${name}/label/${label}" => { group = name, key = "label/${label}", value = value } },
      {
        "${name}/capacity" = { group = name, key = "label/eks.amazonaws.com/capacityType", value = group.capacity == "spot" ? "SPOT" : "ON_DEMAND" }
        "${name}/taint"    = { group = name, key = "taint/${group.taint.key}", value = "${group.taint.value}:NoSchedule" }
        "${name}/disk"     = { group = name, key = "resources/ephemeral-storage", value = "${group.disk_gb}Gi" }
      },
      group.gpus == 0 ? {} : {
        "${name}/gpus" = { group = name, key = "resources/nvidia.com/gpu", value = tostring(group.gpus) }
      },
    )
  ]...)

  # Where a node has local NVMe disks, they become one volume that holds containers, emptyDir volumes and so the models' cache.
  node_config = <<-EOT
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="//"

    --//
    Content-Type: application/node.eks.aws

    apiVersion: node.eks.aws/v1alpha1
    kind: NodeConfig
    spec:
      instance:
        localStorage:
          strategy: RAID0
    --//--
  EOT
}

resource "aws_launch_template" "node" {
  for_each  = merge({ system = 50 }, { for name, pool in var.pools : name => pool.disk_gb })
  name      = "${var.name}-${each.key}"
  user_data = base64encode(local.node_config)
  tags      = var.tags

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1 # pods do not reach it, and so not the node's role
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_type           = "gp3"
      volume_size           = each.value
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])
    content {
      resource_type = tag_specifications.key
      tags          = merge(var.tags, { Name = "${var.name}-${each.key}", "aws-node-termination-handler/managed" = "" })
    }
  }
}

resource "aws_eks_node_group" "system" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "${var.name}-system"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [for subnet in aws_subnet.private : subnet.id]
  capacity_type   = "ON_DEMAND"
  instance_types  = var.system_nodes.instance_types
  ami_type        = "AL2023_x86_64_STANDARD"
  labels          = { "lading.dev/pool" = "system", "lading.dev/capacity" = "on-demand" }
  tags            = var.tags

  launch_template {
    id      = aws_launch_template.node["system"].id
    version = aws_launch_template.node["system"].latest_version
  }

  scaling_config {
    min_size     = var.system_nodes.min
    max_size     = var.system_nodes.max
    desired_size = var.system_nodes.min
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size] # Cluster Autoscaler's
  }

  depends_on = [aws_eks_addon.network, aws_iam_role_policy_attachment.node]
}

resource "aws_eks_node_group" "pool" {
  for_each        = local.groups
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "${var.name}-${each.key}"
  node_role_arn   = aws_iam_role.node.arn
  subnet_ids      = [for zone in local.offered[each.value.pool].zones : aws_subnet.private[zone].id]
  capacity_type   = each.value.capacity == "spot" ? "SPOT" : "ON_DEMAND"
  instance_types  = each.value.instance_types
  ami_type        = each.value.gpus > 0 ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  labels          = each.value.labels
  tags            = var.tags

  launch_template {
    id      = aws_launch_template.node[each.value.pool].id
    version = aws_launch_template.node[each.value.pool].latest_version
  }

  scaling_config {
    min_size     = 0
    max_size     = each.value.max
    desired_size = 0
  }

  taint {
    key    = each.value.taint.key
    value  = each.value.taint.value
    effect = "NO_SCHEDULE"
  }

  update_config {
    max_unavailable = 1
  }

  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
    precondition {
      condition     = length(each.value.instance_types) > 0
      error_message = "pools.${each.value.pool}: none of its instance types is offered in ${join(", ", local.zones)}: name others, or leave the pool out."
    }
  }

  depends_on = [aws_eks_addon.network, aws_iam_role_policy_attachment.node]
}

resource "aws_autoscaling_group_tag" "template" {
  for_each               = local.template_tags
  autoscaling_group_name = aws_eks_node_group.pool[each.value.group].resources[0].autoscaling_groups[0].name
  tag {
    key                 = "k8s.io/cluster-autoscaler/node-template/${each.value.key}"
    value               = each.value.value
    propagate_at_launch = false
  }
}
