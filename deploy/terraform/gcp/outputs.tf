output "cluster_name" {
  description = "For `gcloud container clusters get-credentials`."
  value       = google_container_cluster.this.name
}

output "region" {
  description = "Where all of this is."
  value       = var.region
}

output "bucket" {
  description = "The bucket of jobs/, outputs/ and sources/."
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

locals {
  system = { "lading.dev/pool" = "system" }
}

output "helm_values" {
  description = "For Lading's chart: terraform output -raw helm_values > values-cloud.yaml. Pools come from the chart's presets."
  value = yamlencode(merge(
    {
      cloud    = "gke"
      jobs     = "gs://${local.bucket_name}/jobs"
      settings = { roots = join(",", [for prefix in ["outputs", "sources"] : "gs://${local.bucket_name}/${prefix}"]) }
      # gcsfs would ask for the kind of bucket before each step, which rights by prefix do not allow, and warn each time.
      env = { GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT = "false" }
      images = {
        producer   = { repository = local.images["lading-producer"] }
        workerCpu  = { repository = local.images["lading-worker-cpu"] }
        workerCuda = { repository = local.images["lading-worker-cuda"] }
      }
      # Nodes of a pool without GPUs carry this taint, those with GPUs NVIDIA's, which the chart knows.
      poolDefaults    = { tolerations = [{ key = "lading.dev/pool", operator = "Exists", effect = "NoSchedule" }] }
      scheduler       = { nodeSelector = local.system }
      exporter        = { nodeSelector = local.system }
      submissions     = { nodeSelector = local.system }
      serviceAccounts = { for role, name in var.service_accounts : role => { name = name } }
    },
    { # without Memorystore: on which nodes the chart's own may run
      redis = merge({ nodeSelector = local.system }, merge([
        for instance in google_redis_instance.this : {
          host           = instance.host
          port           = instance.port
          tls            = { caSecret = "lading-redis-ca" }
          autoscalerUser = "" # one password, no users
        }
      ]...))
      networkPolicy = { redis = { cidrs = [for instance in google_redis_instance.this : "${instance.host}/32"] } }
    },
  ))
}
