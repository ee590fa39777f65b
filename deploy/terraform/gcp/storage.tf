# One bucket for what jobs read and write: jobs/ (LADING_JOBS), outputs/ and sources/. Of jobs/: whoever may write there, runs jobs.

locals {
  bucket_name = coalesce(var.bucket_name, "${var.name}-${var.project}-${var.region}")
}

resource "google_storage_bucket" "data" {
  name                        = local.bucket_name
  project                     = var.project
  location                    = var.region
  storage_class               = "STANDARD"
  public_access_prevention    = "enforced"
  uniform_bucket_level_access = true # no ACLs; and rights by prefix need it
  force_destroy               = var.bucket_force_destroy
  labels                      = var.labels

  versioning {
    enabled = var.bucket_versioning
  }

  soft_delete_policy {
    retention_duration_seconds = 0 # else all of staging is paid for a week longer; bucket_versioning is the way to keep things
  }

  dynamic "encryption" {
    for_each = var.bucket_kms_key == null ? [] : [var.bucket_kms_key]
    content {
      default_kms_key_name = encryption.value
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload" # of workers that were killed: they are paid for, and no listing shows them
    }
    condition {
      age = 2
    }
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = var.bucket_noncurrent_days
      with_state                 = "ARCHIVED"
    }
  }

  depends_on = [google_project_service.api]
}
