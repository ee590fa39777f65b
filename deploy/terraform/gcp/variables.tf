variable "project" {
  description = "The project's id, with billing. The APIs that are needed are switched on by this module."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project: a project's id, like my-project-123, not its name or number."
  }
}

variable "region" {
  description = "Where everything is. The cluster's control plane is in three of its zones."
  type        = string
  default     = "us-central1"
  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region: a region, like us-central1, not a zone."
  }
}

variable "node_zones" {
  description = "Zones for nodes. Each must have the GPUs of the pools that name no zones of their own: `gcloud compute accelerator-types list`."
  type        = list(string)
  default     = ["us-central1-a", "us-central1-b", "us-central1-c"]
  validation {
    condition     = length(var.node_zones) > 0 && alltrue([for zone in var.node_zones : startswith(zone, "${var.region}-")])
    error_message = "node_zones: at least one zone, of the region: with another region than us-central1, name its zones here."
  }
}

variable "name" {
  description = "Of the cluster, and the beginning of the names of all else."
  type        = string
  default     = "lading"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,13}$", var.name))
    error_message = "name: 2 to 14 small letters, digits and hyphens, beginning with a letter: it becomes part of the names of service accounts."
  }
}

variable "labels" {
  description = "Put on everything that takes labels."
  type        = map(string)
  default     = {}
}

# -- Network

variable "cidrs" {
  description = "Addresses of nodes, pods, services and the control plane. Every node takes 256 of the pods'."
  type = object({
    nodes         = optional(string, "10.50.0.0/20")
    pods          = optional(string, "10.52.0.0/14")
    services      = optional(string, "10.50.16.0/20")
    control_plane = optional(string, "10.50.32.0/28")
  })
  default = {}
  validation {
    condition     = alltrue([for cidr in values(var.cidrs) : can(cidrnetmask(cidr))]) && try(split("/", var.cidrs.control_plane)[1] == "28", false)
    error_message = "cidrs: IPv4 ranges that do not overlap, like 10.50.0.0/20; the control plane's is a /28."
  }
}

variable "nat" {
  description = "Whether private nodes and pods reach the internet: the model hub, KEDA's images. Google's own APIs need no NAT."
  type        = bool
  default     = true
}

# -- Cluster

variable "release_channel" {
  description = "Which versions of Kubernetes GKE moves to, and how soon: RAPID, REGULAR, STABLE."
  type        = string
  default     = "REGULAR"
  validation {
    condition     = contains(["RAPID", "REGULAR", "STABLE"], var.release_channel)
    error_message = "release_channel: RAPID, REGULAR or STABLE."
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
  description = "Addresses in the VPC or connected to it, of a VPN or a bastion, from which the private endpoint is reached, besides the nodes."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for cidr in var.api_private_cidrs : can(cidrnetmask(cidr)) && try(tonumber(split("/", cidr)[1]) >= 8, false)])
    error_message = "api_private_cidrs: IPv4 ranges like 10.8.0.0/16, not wider than /8."
  }
}

variable "deletion_protection" {
  description = "Whether the cluster refuses to be deleted."
  type        = bool
  default     = true
}

# -- Nodes

variable "system_nodes" {
  description = "The nodes that are always there: for Kubernetes' own pods, the scheduler, the exporter, KEDA. Not spot. All zones together."
  type = object({
    machine_type = optional(string, "e2-standard-2")
    min          = optional(number, 2)
    max          = optional(number, 4)
  })
  default = {}
  validation {
    condition     = var.system_nodes.min >= 1 && var.system_nodes.max >= var.system_nodes.min
    error_message = "system_nodes: 1 <= min <= max: what wakes the pools has to run somewhere."
  }
}

variable "pools" {
  description = <<-EOT
    Lading's pools. A node pool of GKE has one type of machine, so a pool of Lading has a group of spot nodes for each of several, and one of
    nodes on demand, of the first, for when there is no spot. All begin with no node and have no least number: GKE makes nodes for pods
    that wait, the cheapest that are to be had, and removes empty ones.
      machine_types        each a group; gpus is what all of them have
      accelerator          as GKE names it (nvidia-l4); "" for a pool of CPUs
      gpus                 of each node
      zones                those that have them, where not all of node_zones do
      local_ssds           NVMe disks of each node, by type of machine, where it has a choice: pods' scratch space
      spot_max_nodes       of each spot group; 0: none
      on_demand_max_nodes  0: no fallback
      disk_gb              of a node's boot disk
  EOT
  type = map(object({
    machine_types       = list(string)
    accelerator         = optional(string, "")
    gpus                = optional(number, 0)
    zones               = optional(list(string), [])
    local_ssds          = optional(map(number), {})
    spot_max_nodes      = optional(number, 4)
    on_demand_max_nodes = optional(number, 2)
    disk_gb             = optional(number, 100)
  }))
  default = {
    cpu = { machine_types = ["n2-standard-16", "c3-standard-22"], spot_max_nodes = 6 }
    l4 = {
      machine_types       = ["g2-standard-4", "g2-standard-8", "g2-standard-12"]
      accelerator         = "nvidia-l4"
      gpus                = 1
      local_ssds          = { g2-standard-4 = 1, g2-standard-8 = 1, g2-standard-12 = 1 }
      spot_max_nodes      = 16
      on_demand_max_nodes = 4
    }
    a100 = {
      machine_types  = ["a2-highgpu-1g"]
      accelerator    = "nvidia-tesla-a100"
      gpus           = 1
      local_ssds     = { a2-highgpu-1g = 1 }
      spot_max_nodes = 8
    }
    h100 = {
      machine_types       = ["a3-highgpu-1g"]
      accelerator         = "nvidia-h100-80gb"
      gpus                = 1
      local_ssds          = { a3-highgpu-1g = 2 }
      spot_max_nodes      = 8
      on_demand_max_nodes = 0 # this machine is sold as spot, or by the queue, alone
    }
  }
  validation {
    condition     = alltrue([for name, _ in var.pools : can(regex("^[a-z][a-z0-9-]{0,9}$", name)) && name != "system"])
    error_message = "pools: a pool's name is that in pools.yaml: at most 10 small letters, digits and hyphens; `system` is taken."
  }
  validation {
    condition     = alltrue([for pool in var.pools : length(pool.machine_types) > 0 && length(pool.machine_types) == length(distinct(pool.machine_types))])
    error_message = "pools: machine_types names at least one type of machine, each once."
  }
  validation {
    condition     = alltrue([for pool in var.pools : (pool.gpus > 0) == (pool.accelerator != "") && contains([0, 1, 2, 4, 8, 16], pool.gpus)])
    error_message = "pools: accelerator and gpus go together, like nvidia-l4 and 1; gpus is 0, 1, 2, 4, 8 or 16."
  }
  validation {
    condition     = alltrue([for pool in var.pools : pool.spot_max_nodes >= 0 && pool.on_demand_max_nodes >= 0 && pool.spot_max_nodes + pool.on_demand_max_nodes > 0])
    error_message = "pools: spot_max_nodes and on_demand_max_nodes are 0 or more, and one of the two is not 0."
  }
  validation {
    condition     = alltrue(flatten([for pool in var.pools : [for zone in pool.zones : startswith(zone, "${var.region}-")]]))
    error_message = "pools: zones are of the region."
  }
  validation {
    condition     = alltrue([for pool in var.pools : pool.disk_gb >= 50])
    error_message = "pools: disk_gb is at least 50: the image with CUDA alone takes more than 10."
  }
}

# -- Data

variable "bucket_name" {
  description = "Of the bucket for jobs/, outputs/ and sources/. Left out: NAME-PROJECT-REGION."
  type        = string
  default     = null
  validation {
    condition     = var.bucket_name == null || can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name: 3 to 63 small letters, digits, hyphens and underscores."
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

variable "bucket_kms_key" {
  description = "Key for the bucket's objects, which Cloud Storage's service agent may use. Left out: Google's own keys."
  type        = string
  default     = null
  validation {
    condition     = var.bucket_kms_key == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.bucket_kms_key))
    error_message = "bucket_kms_key: projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY."
  }
}

variable "bucket_force_destroy" {
  description = "Whether `terraform destroy` deletes the bucket with what is in it."
  type        = bool
  default     = false
}

variable "read_only" {
  description = "Further places that jobs read from, in buckets that are not made here. A prefix ends with a slash; \"\" is the whole bucket."
  type        = list(object({ bucket = string, prefix = string }))
  default     = []
  validation {
    condition     = alltrue([for place in var.read_only : can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", place.bucket)) && can(regex("^$|^[^/*?'\"\\\\][^*?'\"\\\\]*/$|^[^/*?'\"\\\\]/$", place.prefix))])
    error_message = "read_only: a bucket's name without gs://, and a prefix like corpus/ that ends with a slash and has no wildcard or quote, or \"\" for the whole bucket."
  }
}

variable "read_write" {
  description = "Further places for outputs, in buckets that are not made here. A prefix is required."
  type        = list(object({ bucket = string, prefix = string }))
  default     = []
  validation {
    condition     = alltrue([for place in var.read_write : can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", place.bucket)) && can(regex("^[^/*?'\"\\\\][^*?'\"\\\\]*/$", place.prefix))])
    error_message = "read_write: a bucket's name without gs://, and a prefix like vectors/ that ends with a slash and has no wildcard or quote."
  }
}

variable "redis" {
  description = <<-EOT
    Memorystore for Redis with TLS, a password and noeviction; left out: none (the chart's own, or yours). It has one password and no users: all
    of Lading's parts have all rights on it. The provider writes that password into Terraform's state.
  EOT
  type = object({
    memory_gb = optional(number, 1)
    tier      = optional(string, "STANDARD_HA")
    version   = optional(string, "REDIS_7_2")
  })
  default = null
  validation {
    condition     = var.redis == null || try(var.redis.memory_gb >= 1 && contains(["BASIC", "STANDARD_HA"], var.redis.tier) && can(regex("^REDIS_(7_[0-9]|[8-9]_[0-9])$", var.redis.version)), false)
    error_message = "redis: memory_gb at least 1; tier BASIC (one server) or STANDARD_HA (a replica); version REDIS_7_0 or newer."
  }
}

# -- Pods

variable "namespace" {
  description = "Where the chart is installed."
  type        = string
  default     = "lading"
}

variable "service_accounts" {
  description = "Names of the chart's service accounts in Kubernetes, which get the rights."
  type = object({
    worker    = optional(string, "lading-worker")
    scheduler = optional(string, "lading-scheduler")
    producer  = optional(string, "lading-producer")
  })
  default = {}
}
