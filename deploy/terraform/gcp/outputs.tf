output "cluster_name" {
  description = "For `gcloud container clusters get-credentials`."
  value       = google_container_cluster.this.name
}

output "region" {
  description = "Where all of this is."
  value       = var.region
}

output "bucket" {
  description = "The bucket of jobs/, outputs/, models/ and sources/."
  value       = google_storage_bucket.data.name
}

output "image_repositories" {
  description = "Where each image is pushed to."
  value       = local.images
}

output "redis_host" {
  description = "Memorystore's address, where it is asked for; port 6378, TLS. Else null."
  value       = one([for instance in google_redis_instance.this : instance.host])
}

output "redis_ca" {
  description = "The certificate authority of Memorystore, for the chart's redis.tls.caSecret. Not secret."
  value       = one([for instance in google_redis_instance.this : join("\n", instance.server_ca_certs[*].cert)])
}

locals {
  registry = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
  images   = { for image in ["lading-producer", "lading-worker-cpu", "lading-worker-cuda"] : image => "${local.registry}/${image}" }
}

output "helm_values" {
  description = "For Lading's chart: terraform output -raw helm_values > values-cloud.yaml. Pools come from the chart's presets."
  value = yamlencode(merge(
    {
      cloud    = "gke"
      jobs     = "gs://${local.bucket_name}/jobs"
      settings = { roots = join(",", [for prefix in ["models", "outputs"] : "gs://${local.bucket_name}/${prefix}"]) }
      images = {
        producer   = { repository = local.images["lading-producer"] }
        workerCpu  = { repository = local.images["lading-worker-cpu"] }
        workerCuda = { repository = local.images["lading-worker-cuda"] }
      }
      serviceAccounts = { for role, name in var.service_accounts : role => { name = name } }
      scheduler       = { nodeSelector = { "lading.dev/pool" = "system" } }
      exporter        = { nodeSelector = { "lading.dev/pool" = "system" } }
    },
    { # absent without Memorystore
      for key, value in {
        redis = {
          host           = one([for instance in google_redis_instance.this : instance.host])
          port           = one([for instance in google_redis_instance.this : instance.port])
          tls            = { caSecret = "lading-redis-ca" }
          autoscalerUser = "default" # the one password belongs to the one user that there is
        }
        networkPolicy = { redis = { cidrs = [for instance in google_redis_instance.this : "${instance.host}/32"] } }
      } : key => value if var.redis != null
    },
  ))
}
