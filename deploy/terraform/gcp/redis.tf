# Memorystore, where it is asked for. It writes no append-only file: its copies are a replica and hourly snapshots, so a failover may lose
# the newest messages. Shards come back from the manifests; requests of applications that were not answered do not.

locals {
  redis = var.redis == null ? {} : { this = var.redis }
}

resource "google_compute_global_address" "redis" {
  for_each      = local.redis
  name          = "${var.name}-services"
  project       = var.project
  network       = google_compute_network.this.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 24
}

resource "google_service_networking_connection" "redis" {
  for_each                = local.redis
  network                 = google_compute_network.this.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.redis["this"].name]
  depends_on              = [google_project_service.api]
}

resource "google_redis_instance" "this" {
  for_each                = local.redis
  name                    = "${var.name}-redis"
  project                 = var.project
  region                  = var.region
  tier                    = each.value.tier
  memory_size_gb          = each.value.memory_gb
  redis_version           = each.value.version
  authorized_network      = google_compute_network.this.id
  connect_mode            = "PRIVATE_SERVICE_ACCESS"
  auth_enabled            = true
  transit_encryption_mode = "SERVER_AUTHENTICATION"
  redis_configs           = { "maxmemory-policy" = "noeviction" } # with any other a full Redis drops queues
  labels                  = var.labels

  persistence_config {
    persistence_mode    = "RDB"
    rdb_snapshot_period = "ONE_HOUR"
  }

  depends_on = [google_service_networking_connection.redis]
}
