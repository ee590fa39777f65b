variable "name" {
  description = "Of the cluster, and the beginning of the names of all else."
  type        = string
  default     = "lading"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "name: 2 to 20 small letters, digits and hyphens, beginning with a letter: it becomes part of bucket and role names."
  }
}

variable "tags" {
  description = "Put on everything that takes tags."
  type        = map(string)
  default     = {}
}

# -- Network

variable "vpc_cidr" {
  description = "Addresses of the VPC. Each zone has a sixteenth of them for nodes and pods."
  type        = string
  default     = "10.40.0.0/16"
  validation {
    condition     = can(cidrnetmask(var.vpc_cidr)) && try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    error_message = "vpc_cidr: an IPv4 range between /16 and /20, like 10.40.0.0/16: every pod takes an address of it."
  }
}

variable "zones" {
  description = "Availability zones; more of them find more spot capacity. None: the first three. Name them for what is to last: of zones that are out of order, or new, the first three may be others, and subnets would be made anew."
  type        = list(string)
  default     = []
  validation {
    condition     = length(var.zones) == 0 || length(distinct(var.zones)) == length(var.zones) && length(var.zones) >= 2 && length(var.zones) <= 4 && alltrue([for zone in var.zones : can(regex("^[a-z]+(-[a-z]+)+-[0-9][a-z]$", zone))])
    error_message = "zones: two to four zones, each once, like [\"eu-central-1a\", \"eu-central-1b\"]; the control plane needs two."
  }
}

variable "nat" {
  description = "The way out of the private subnets: one NAT gateway for all zones (single), one in each (per-zone), or none."
  type        = string
  default     = "single"
  validation {
    condition     = contains(["single", "per-zone", "none"], var.nat)
    error_message = "nat: single, per-zone or none."
  }
}

variable "interface_endpoints" {
  description = "AWS services that are reached inside the VPC, like ecr.api. Each costs by the hour and zone. S3 has its free gateway always."
  type        = list(string)
  default     = []
  validation {
    condition     = var.nat != "none" || length(setsubtract(["autoscaling", "ec2", "ecr.api", "ecr.dkr", "eks", "logs", "sqs", "sts"], var.interface_endpoints)) == 0
    error_message = "interface_endpoints: without NAT the nodes need autoscaling, ec2, ecr.api, ecr.dkr, eks, logs, sqs and sts."
  }
}

# -- Cluster

variable "kubernetes_version" {
  description = "Minor version of the control plane and the nodes. Past its standard support EKS raises it by itself."
  type        = string
  default     = "1.35"
  validation {
    condition     = can(regex("^1\\.(29|[3-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version: a minor version from 1.29 on, like 1.35, without a patch number."
  }
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster. Nobody else gets in, whoever ran Terraform included."
  type        = list(string)
  validation {
    condition     = length(var.admin_principal_arns) > 0 && alltrue([for arn in var.admin_principal_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "admin_principal_arns: at least one, like arn:aws:iam::123456789012:role/admin. `aws sts get-caller-identity` shows yours; of an assumed role name the role."
  }
}

variable "api_public_cidrs" {
  description = "Addresses from which the API server is reached over the internet. None: only from within the VPC."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for cidr in var.api_public_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]) >= 8, false)])
    error_message = "api_public_cidrs: IPv4 ranges like 203.0.113.7/32. Ranges wider than /8, and so all of the internet, are refused."
  }
}

variable "api_private_cidrs" {
  description = "Addresses, of a VPN or a bastion, from which the API server's private endpoint is reached, besides the nodes."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for cidr in var.api_private_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]) >= 8, false)])
    error_message = "api_private_cidrs: IPv4 ranges like 10.8.0.0/16, not wider than /8."
  }
}

variable "log_retention_days" {
  description = "Of the control plane's logs."
  type        = number
  default     = 30
  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days: one of CloudWatch's periods, like 7, 30, 90 or 365. Keeping logs for ever has to be meant: it is not offered."
  }
}

variable "deletion_protection" {
  description = "Whether the cluster refuses to be deleted."
  type        = bool
  default     = true
}

# -- Nodes

variable "system_nodes" {
  description = "The nodes that are always there: for Kubernetes' own pods, the scheduler, the exporter, KEDA. On demand."
  type = object({
    instance_types = optional(list(string), ["m7i.large", "m6i.large"])
    min            = optional(number, 2)
    max            = optional(number, 4)
  })
  default = {}
  validation {
    condition     = length(var.system_nodes.instance_types) > 0 && var.system_nodes.min >= 1 && var.system_nodes.max >= var.system_nodes.min
    error_message = "system_nodes: at least one instance type, and 1 <= min <= max: what wakes the pools has to run somewhere."
  }
}

variable "pools" {
  description = <<-EOT
    Lading's pools, each with a group of spot nodes and one of on-demand nodes, for when there is no spot. All begin with no node and
    have no least number: Cluster Autoscaler makes nodes for pods that wait, and removes empty ones.
      instance_types       alike in architecture and GPUs. The smallest first: with no node there, pods are measured against that one
      gpus                 of each node; 0 for a pool of CPUs
      spot_max_nodes       0: no spot nodes
      on_demand_max_nodes  0: no fallback
      disk_gb              of a node's root volume; local NVMe disks, where there are any, hold pods' scratch space instead
  EOT
  type = map(object({
    instance_types      = list(string)
    gpus                = optional(number, 0)
    spot_max_nodes      = optional(number, 4)
    on_demand_max_nodes = optional(number, 2)
    disk_gb             = optional(number, 100)
  }))
  default = {
    cpu  = { instance_types = ["c7i.4xlarge", "c7a.4xlarge", "c6i.4xlarge"], spot_max_nodes = 6 }
    l4   = { instance_types = ["g6.xlarge", "g6.2xlarge", "g6.4xlarge"], gpus = 1, spot_max_nodes = 16, on_demand_max_nodes = 4 }
    a10g = { instance_types = ["g5.xlarge", "g5.2xlarge", "g5.4xlarge"], gpus = 1, spot_max_nodes = 16, on_demand_max_nodes = 4 }
    a100 = { instance_types = ["p4d.24xlarge", "p4de.24xlarge"], gpus = 8, spot_max_nodes = 1, on_demand_max_nodes = 1 }
    h100 = { instance_types = ["p5.48xlarge", "p5e.48xlarge", "p5en.48xlarge"], gpus = 8, spot_max_nodes = 1, on_demand_max_nodes = 1 }
  }
  validation {
    condition     = alltrue([for name, _ in var.pools : can(regex("^[a-z0-9][a-z0-9-]{0,19}$", name)) && name != "system"])
    error_message = "pools: a pool's name is that in pools.yaml: at most 20 small letters, digits and hyphens; `system` is taken."
  }
  validation {
    condition     = alltrue([for pool in var.pools : pool.spot_max_nodes == 0 ? length(pool.instance_types) > 0 : length(distinct(pool.instance_types)) > 1])
    error_message = "pools: a spot pool names at least two instance types: capacity of a single one comes and goes. Without spot (spot_max_nodes = 0) one is enough."
  }
  validation {
    condition     = alltrue([for pool in var.pools : pool.spot_max_nodes >= 0 && pool.on_demand_max_nodes >= 0 && pool.spot_max_nodes + pool.on_demand_max_nodes > 0])
    error_message = "pools: spot_max_nodes and on_demand_max_nodes are 0 or more, and one of the two is not 0."
  }
  validation {
    condition     = alltrue([for pool in var.pools : contains([0, 1, 2, 4, 8, 16], pool.gpus) && pool.disk_gb >= 50])
    error_message = "pools: gpus is what all the instance types have (0, 1, 2, 4, 8 or 16); disk_gb is at least 50: the image with CUDA alone takes more than 10."
  }
}

variable "interruption_queue" {
  description = "A queue of notices (spot interruptions, rebalancing, maintenance) for AWS Node Termination Handler, beside what EKS does by itself."
  type        = bool
  default     = true
}

# -- Data

variable "bucket_name" {
  description = "Of the bucket for jobs/, outputs/ and sources/. Left out: NAME-ACCOUNT-REGION."
  type        = string
  default     = null
  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name: 3 to 63 small letters, digits and hyphens. No dots: they break TLS."
  }
}

variable "bucket_versioning" {
  description = "Keep what was overwritten or deleted for bucket_noncurrent_days. Costs storage: staging and compaction delete a lot."
  type        = bool
  default     = false
}

variable "bucket_noncurrent_days" {
  description = "How long overwritten and deleted objects stay, with versioning."
  type        = number
  default     = 7
  validation {
    condition     = var.bucket_noncurrent_days >= 1
    error_message = "bucket_noncurrent_days: at least 1."
  }
}

variable "bucket_kms_key_arn" {
  description = "Key for the bucket's objects. Left out: S3's own keys. The roles of the pods get what they need of it."
  type        = string
  default     = null
  validation {
    condition     = var.bucket_kms_key_arn == null || can(regex("^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/", var.bucket_kms_key_arn))
    error_message = "bucket_kms_key_arn: a key's ARN (arn:aws:kms:REGION:ACCOUNT:key/ID), not an alias."
  }
}

variable "bucket_force_destroy" {
  description = "Whether `terraform destroy` deletes the bucket with what is in it, and the image repositories with theirs."
  type        = bool
  default     = false
}

variable "read_only" {
  description = "Further places that jobs read from, in buckets that are not made here. A prefix ends with a slash; \"\" is the whole bucket."
  type        = list(object({ bucket = string, prefix = string }))
  default     = []
  validation {
    condition     = alltrue([for place in var.read_only : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", place.bucket)) && can(regex("^$|^[^/*?$].*/$", place.prefix)) && !can(regex("[*?$]", place.prefix))])
    error_message = "read_only: a bucket's name without s3://, and a prefix like corpus/ that ends with a slash and has no wildcard, or \"\" for the whole bucket."
  }
}

variable "read_write" {
  description = "Further places for outputs, in buckets that are not made here. A prefix is required."
  type        = list(object({ bucket = string, prefix = string }))
  default     = []
  validation {
    condition     = alltrue([for place in var.read_write : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", place.bucket)) && can(regex("^[^/*?$].*/$", place.prefix)) && !can(regex("[*?$]", place.prefix))])
    error_message = "read_write: a bucket's name without s3://, and a prefix like vectors/ that ends with a slash and has no wildcard."
  }
}

variable "redis" {
  description = <<-EOT
    ElastiCache for Redis with TLS, users and noeviction; left out: none (the chart's own, or yours). Its users are made beforehand with the
    AWS CLI (deploy/README.md), so that no password gets into Terraform's state; user_group_id names their group.
  EOT
  type = object({
    user_group_id  = string
    node_type      = optional(string, "cache.t4g.small")
    engine_version = optional(string, "7.1")
    replicas       = optional(number, 1)
    snapshot_days  = optional(number, 1)
  })
  default = null
  validation {
    condition     = var.redis == null || try(length(var.redis.user_group_id) > 0 && startswith(var.redis.node_type, "cache.") && contains([0, 1, 2, 3, 4, 5], var.redis.replicas) && var.redis.snapshot_days >= 0, false)
    error_message = "redis: user_group_id names the group of users (a Redis without them would be open to every pod); node_type begins with cache.; replicas are 0 to 5."
  }
}

# -- Pods

variable "namespace" {
  description = "Where the chart is installed."
  type        = string
  default     = "lading"
}

variable "service_accounts" {
  description = "Names of the chart's service accounts, which the roles trust."
  type = object({
    worker    = optional(string, "lading-worker")
    scheduler = optional(string, "lading-scheduler")
    producer  = optional(string, "lading-producer")
  })
  default = {}
}
