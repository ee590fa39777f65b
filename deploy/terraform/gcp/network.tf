# Nodes have no public addresses. Google's APIs, the bucket among them, are reached privately; the rest by NAT, if at all.

data "google_project" "this" {
  project_id = var.project
}

resource "google_project_service" "api" {
  for_each = toset(concat(
    ["artifactregistry", "cloudkms", "compute", "container", "containerfilesystem", "containerscanning", "iam", "logging", "monitoring", "storage"],
    var.redis == null ? [] : ["redis", "servicenetworking"],
  ))
  project            = var.project
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false # others in the project may use it
}

resource "google_compute_network" "this" {
  name                    = var.name
  project                 = var.project
  auto_create_subnetworks = false
  depends_on              = [google_project_service.api]
}

resource "google_compute_subnetwork" "nodes" {
  name                     = "${var.name}-nodes"
  project                  = var.project
  region                   = var.region
  network                  = google_compute_network.this.id
  ip_cidr_range            = var.cidrs.nodes
  private_ip_google_access = true

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = var.cidrs.pods
  }

  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = var.cidrs.services
  }
}

resource "google_compute_router" "this" {
  count   = var.nat ? 1 : 0
  name    = var.name
  project = var.project
  region  = var.region
  network = google_compute_network.this.id
}

resource "google_compute_router_nat" "this" {
  count                               = var.nat ? 1 : 0
  name                                = var.name
  project                             = var.project
  region                              = var.region
  router                              = google_compute_router.this[0].name
  nat_ip_allocate_option              = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat  = "ALL_SUBNETWORKS_ALL_IP_RANGES"
  enable_dynamic_port_allocation      = true # many connections of one worker to a hub or a bucket elsewhere
  enable_endpoint_independent_mapping = false
  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}

# The control plane calls KEDA's metrics server and webhooks on the nodes; GKE itself opens 443 and 10250 alone.
resource "google_compute_firewall" "control_plane" {
  name                    = "${var.name}-control-plane"
  project                 = var.project
  network                 = google_compute_network.this.id
  direction               = "INGRESS"
  source_ranges           = [var.cidrs.control_plane]
  target_service_accounts = [google_service_account.node.email]
  allow {
    protocol = "tcp"
    ports    = ["6443", "8443", "9443"]
  }
}
