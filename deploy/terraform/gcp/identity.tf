# What pods may do in buckets, by role and by prefix. Kubernetes' service accounts are named themselves (Workload Identity Federation):
# there is no account of Google's between, and no annotation. Of all else in the project: nothing.
#
#             sources   outputs, jobs
#   worker    read      read, write, delete
#   producer  read      read, write, delete    it plans: reads what it submits, writes the plan
#   scheduler           read, write, delete    it brings rows into view and ends jobs

locals {
  written = concat(
    [for prefix in ["jobs/", "outputs/"] : { bucket = local.bucket_name, prefix = prefix }],
    var.read_write,
  )
  read = concat(
    [{ bucket = local.bucket_name, prefix = "sources/" }],
    var.read_only,
  )

  grants = merge([
    for role, places in {
      worker    = { "roles/storage.objectViewer" = local.read, "roles/storage.objectUser" = local.written }
      producer  = { "roles/storage.objectViewer" = local.read, "roles/storage.objectUser" = local.written }
      scheduler = { "roles/storage.objectUser" = local.written }
      } : merge([
        for right, allowed in places : {
          for bucket in distinct(allowed[*].bucket) : "${role}/${right}/${bucket}" => {
            role     = role
            right    = right
            bucket   = bucket
            prefixes = [for place in allowed : place.prefix if place.bucket == bucket]
          }
        }
    ]...)
  ]...)

  # An object is in the prefix; a listing, which is a right on the bucket, asks for no more than the prefix.
  conditions = {
    for key, grant in local.grants : key => join(" || ", flatten([
      for prefix in grant.prefixes : [
        "resource.name.startsWith('projects/_/buckets/${grant.bucket}/objects/${prefix}')",
        "api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('${prefix}')",
      ]
    ])) if !contains(grant.prefixes, "")
  }

  pods = "principal://iam.googleapis.com/projects/${data.google_project.this.number}/locations/global/workloadIdentityPools/${var.project}.svc.id.goog/subject"
}

resource "google_storage_bucket_iam_member" "pod" {
  for_each = local.grants
  bucket   = each.value.bucket
  role     = each.value.right
  member   = "${local.pods}/ns/${var.namespace}/sa/${var.service_accounts[each.value.role]}"

  dynamic "condition" {
    for_each = compact([lookup(local.conditions, each.key, "")])
    content {
      title      = "${each.value.role}-prefixes"
      expression = condition.value
    }
  }

  # The pool of identities is there once the cluster is; the bucket may be somebody else's, so it is named, not referred to.
  depends_on = [google_container_cluster.this, google_storage_bucket.data]
}
