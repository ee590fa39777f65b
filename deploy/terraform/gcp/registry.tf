# One repository for all images. A tag, once pushed, stays what it is; deployments name digests all the same.

resource "google_artifact_registry_repository" "images" {
  repository_id = var.name
  project       = var.project
  location      = var.region
  format        = "DOCKER"
  description   = "Images of Lading"
  labels        = var.labels

  docker_config {
    immutable_tags = true
  }

  vulnerability_scanning_config {
    enablement_config = "INHERITED" # containerscanning.googleapis.com is on; each image's first scan costs
  }

  cleanup_policies {
    id     = "untagged"
    action = "DELETE"
    condition {
      tag_state  = "UNTAGGED"
      older_than = "1209600s" # 14 days
    }
  }

  depends_on = [google_project_service.api]
}

resource "google_artifact_registry_repository_iam_member" "nodes" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = "serviceAccount:${google_service_account.node.email}"
}
