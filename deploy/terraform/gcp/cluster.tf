# The control plane: its API in the VPC alone unless addresses are named, Secrets encrypted with a key of our own, its logs kept.

resource "google_kms_key_ring" "this" {
  name       = var.name # a key ring stays for ever, also after `terraform destroy`: a second cluster needs another name
  project    = var.project
  location   = var.region
  depends_on = [google_project_service.api]
}

resource "google_kms_crypto_key" "secrets" {
  name            = "kubernetes-secrets"
  key_ring        = google_kms_key_ring.this.id
  rotation_period = "7776000s" # 90 days
}

resource "google_kms_crypto_key_iam_member" "gke" {
  crypto_key_id = google_kms_crypto_key.secrets.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.this.number}@container-engine-robot.iam.gserviceaccount.com"
}

resource "google_container_cluster" "this" {
  name                     = var.name
  project                  = var.project
  location                 = var.region
  node_locations           = var.node_zones
  network                  = google_compute_network.this.id
  subnetwork               = google_compute_subnetwork.nodes.id
  deletion_protection      = var.deletion_protection
  remove_default_node_pool = true
  initial_node_count       = 1
  enable_shielded_nodes    = true
  datapath_provider        = "ADVANCED_DATAPATH" # what enforces the chart's NetworkPolicies
  resource_labels          = var.labels

  node_config { # of the default pool, which goes at once
    service_account = google_service_account.node.email
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }
  }

  release_channel {
    channel = var.release_channel
  }

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = length(var.api_public_cidrs) == 0
    master_ipv4_cidr_block  = var.cidrs.control_plane
  }

  master_authorized_networks_config {
    gcp_public_cidrs_access_enabled = false
    dynamic "cidr_blocks" {
      for_each = toset(concat(var.api_public_cidrs, var.api_private_cidrs))
      content {
        cidr_block = cidr_blocks.key
      }
    }
  }

  master_auth {
    client_certificate_config {
      issue_client_certificate = false
    }
  }

  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  database_encryption {
    state    = "ENCRYPTED"
    key_name = google_kms_crypto_key.secrets.id
  }

  logging_config {
    enable_components = ["SYSTEM_COMPONENTS", "WORKLOADS", "APISERVER", "CONTROLLER_MANAGER", "SCHEDULER"]
  }

  monitoring_config {
    enable_components = ["SYSTEM_COMPONENTS"]
    managed_prometheus {
      enabled = false # billed by the sample; the chart brings PodMonitors for a Prometheus of your own
    }
  }

  addons_config {
    gce_persistent_disk_csi_driver_config {
      enabled = true
    }
    http_load_balancing {
      disabled = true # nothing here is served to the outside
    }
  }

  cluster_autoscaling {
    autoscaling_profile = "OPTIMIZE_UTILIZATION" # empty nodes go sooner
  }

  lifecycle {
    ignore_changes = [node_config, initial_node_count] # of a pool that is no more
  }

  depends_on = [google_kms_crypto_key_iam_member.gke]
}
