# One small group that is always there, and for each of Lading's pools groups of spot nodes and one on demand, all from zero.

resource "google_service_account" "node" {
  account_id   = "${var.name}-node"
  project      = var.project
  display_name = "Nodes of ${var.name}: logs, metrics and images, nothing else"
  depends_on   = [google_project_service.api]
}

resource "google_project_iam_member" "node" {
  for_each = toset(["roles/container.defaultNodeServiceAccount"])
  project  = var.project
  role     = each.key
  member   = "serviceAccount:${google_service_account.node.email}"
}

locals {
  # Names of node pools may be 40 letters long: POOL-MACHINE-spot, POOL-on-demand.
  groups = merge([
    for name, pool in var.pools : merge(
      {
        for machine in pool.machine_types : "${name}-${machine}-spot" => merge(pool, {
          pool = name, capacity = "spot", machine = machine, max = pool.spot_max_nodes
        }) if pool.spot_max_nodes > 0
      },
      pool.on_demand_max_nodes == 0 ? {} : {
        "${name}-on-demand" = merge(pool, {
          pool = name, capacity = "on-demand", machine = pool.machine_types[0], max = pool.on_demand_max_nodes
        })
      },
    )
  ]...)
}

resource "google_container_node_pool" "system" {
  name               = "system"
  project            = var.project
  location           = var.region
  cluster            = google_container_cluster.this.name
  initial_node_count = 1 # in each zone; within minutes the autoscaler holds to what follows

  autoscaling {
    total_min_node_count = var.system_nodes.min
    total_max_node_count = var.system_nodes.max
    location_policy      = "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = var.system_nodes.machine_type
    disk_type       = "pd-balanced"
    disk_size_gb    = 50
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"] # what the account may do decides, not scopes
    labels          = { "lading.dev/pool" = "system", "lading.dev/capacity" = "on-demand" }
    resource_labels = var.labels

    workload_metadata_config {
      mode = "GKE_METADATA" # pods see their own identity, not the node's
    }

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }
}

resource "google_container_node_pool" "pool" {
  for_each           = local.groups
  name               = each.key
  project            = var.project
  location           = var.region
  cluster            = google_container_cluster.this.name
  node_locations     = length(each.value.zones) > 0 ? each.value.zones : var.node_zones
  initial_node_count = 0

  autoscaling {
    total_min_node_count = 0
    total_max_node_count = each.value.max
    location_policy      = "ANY" # wherever there is capacity
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  node_config {
    machine_type    = each.value.machine
    spot            = each.value.capacity == "spot"
    disk_type       = "pd-balanced"
    disk_size_gb    = each.value.disk_gb
    service_account = google_service_account.node.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    labels          = { "lading.dev/pool" = each.value.pool, "lading.dev/capacity" = each.value.capacity }
    resource_labels = var.labels

    dynamic "guest_accelerator" {
      for_each = each.value.gpus > 0 ? [each.value.accelerator] : []
      content {
        type  = guest_accelerator.value
        count = each.value.gpus
        gpu_driver_installation_config {
          gpu_driver_version = "LATEST" # the worker's CUDA 13 needs R580 or newer
        }
      }
    }

    taint { # keeps others off, who would hold the node when the pool's work is done; the chart's pools tolerate it
      key    = each.value.gpus > 0 ? "nvidia.com/gpu" : "lading.dev/pool"
      value  = each.value.gpus > 0 ? "present" : each.value.pool
      effect = "NO_SCHEDULE"
    }

    dynamic "ephemeral_storage_local_ssd_config" {
      for_each = compact([lookup(each.value.local_ssds, each.value.machine, null)])
      content {
        local_ssd_count = tonumber(ephemeral_storage_local_ssd_config.value)
      }
    }

    gcfs_config {
      enabled = true # image streaming: a container starts before the last of its gigabytes has come
    }

    gvnic {
      enabled = true
    }

    workload_metadata_config {
      mode = "GKE_METADATA"
    }

    shielded_instance_config {
      enable_secure_boot          = each.value.gpus == 0 # the GPUs' drivers are not signed for it on every version
      enable_integrity_monitoring = true
    }
  }

  lifecycle {
    ignore_changes = [initial_node_count]
  }
}
