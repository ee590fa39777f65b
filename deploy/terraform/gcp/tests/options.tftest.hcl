# What changes where it is asked for, and what pods may do.

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  project = "my-project"
}

run "a_public_api_for_named_addresses" {
  command = plan

  variables {
    api_public_cidrs  = ["203.0.113.7/32"]
    api_private_cidrs = ["10.8.0.0/16"]
  }

  assert {
    condition     = !google_container_cluster.this.private_cluster_config[0].enable_private_endpoint && google_container_cluster.this.private_cluster_config[0].enable_private_nodes
    error_message = "the endpoint is not there, or nodes have public addresses"
  }
  assert {
    condition     = toset([for block in google_container_cluster.this.master_authorized_networks_config[0].cidr_blocks : block.cidr_block]) == toset(["203.0.113.7/32", "10.8.0.0/16"])
    error_message = "the API server is open to others than those named"
  }
}

run "each_role_has_its_prefixes" {
  command = apply

  variables {
    namespace        = "batch"
    service_accounts = { worker = "w" }
    read_only        = [{ bucket = "corpora", prefix = "wiki/" }, { bucket = "open-data", prefix = "" }]
    read_write       = [{ bucket = "lake", prefix = "vectors/" }]
  }

  assert {
    condition = {
      for key, grant in google_storage_bucket_iam_member.pod : key => reverse(split("/subject/", grant.member))[0]
      } == merge(
      { for place in ["lading-my-project-us-central1", "lake"] : "worker/roles/storage.objectUser/${place}" => "ns/batch/sa/w" },
      { for place in ["lading-my-project-us-central1", "corpora", "open-data"] : "worker/roles/storage.objectViewer/${place}" => "ns/batch/sa/w" },
      { for place in ["lading-my-project-us-central1", "lake"] : "producer/roles/storage.objectUser/${place}" => "ns/batch/sa/lading-producer" },
      { for place in ["lading-my-project-us-central1", "corpora", "open-data"] : "producer/roles/storage.objectViewer/${place}" => "ns/batch/sa/lading-producer" },
      { for place in ["lading-my-project-us-central1", "lake"] : "scheduler/roles/storage.objectUser/${place}" => "ns/batch/sa/lading-scheduler" },
    )
    error_message = "a role has rights that it does not need, or others have them too"
  }
  assert {
    condition     = try(one(google_storage_bucket_iam_member.pod["worker/roles/storage.objectUser/lake"].condition).expression, "") == "resource.name.startsWith('projects/_/buckets/lake/objects/vectors/') || api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('vectors/')"
    error_message = "a worker writes elsewhere in a bucket than in the prefix that it was given"
  }
  assert {
    condition     = alltrue([for key, grant in google_storage_bucket_iam_member.pod : length(grant.condition) == (endswith(key, "/open-data") ? 0 : 1)])
    error_message = "only a bucket that was given whole is read whole"
  }
  assert {
    condition     = alltrue([for grant in google_storage_bucket_iam_member.pod : startswith(grant.member, "principal://iam.googleapis.com/projects/987654321098/locations/global/workloadIdentityPools/my-project.svc.id.goog/subject/")])
    error_message = "rights go to somebody else than this project's pods"
  }
}

run "redis_with_tls_and_a_password" {
  command = apply

  variables {
    redis = {}
  }

  assert {
    condition     = google_redis_instance.this["this"].auth_enabled && google_redis_instance.this["this"].transit_encryption_mode == "SERVER_AUTHENTICATION"
    error_message = "Redis answers without TLS or without a password"
  }
  assert {
    condition     = google_redis_instance.this["this"].redis_configs == tomap({ "maxmemory-policy" = "noeviction" }) && google_redis_instance.this["this"].tier == "STANDARD_HA"
    error_message = "a full Redis would drop queues, or one lost server is an outage"
  }
  assert {
    condition     = google_redis_instance.this["this"].connect_mode == "PRIVATE_SERVICE_ACCESS" && contains(keys(google_project_service.api), "redis")
    error_message = "Redis is not in the VPC alone"
  }
  assert {
    condition = yamldecode(output.helm_values).redis == {
      host = "10.9.8.3", port = 6378, tls = { caSecret = "lading-redis-ca" }, autoscalerUser = "", nodeSelector = { "lading.dev/pool" = "system" }
    }
    error_message = "the chart would not find Redis, or not trust it"
  }
  assert {
    condition     = yamldecode(output.helm_values).networkPolicy.redis.cidrs == ["10.9.8.3/32"] && startswith(output.redis_ca, "-----BEGIN CERTIFICATE-----")
    error_message = "pods would not be let through to Redis"
  }
}

run "no_way_out" {
  command = plan

  variables {
    nat = false
  }

  assert {
    condition     = length(google_compute_router_nat.this) == 0 && google_compute_subnetwork.nodes.private_ip_google_access
    error_message = "there is a way to the internet, or none to Google's own APIs"
  }
}

run "another_region" {
  command = plan

  variables {
    region     = "europe-west4"
    node_zones = ["europe-west4-a", "europe-west4-b"]
    pools      = { h100 = { machine_types = ["a3-highgpu-1g"], accelerator = "nvidia-h100-80gb", gpus = 1, zones = ["europe-west4-b"], on_demand_max_nodes = 0 } }
  }

  assert {
    condition     = keys(google_container_node_pool.pool) == ["h100-a3-highgpu-1g-spot"] && google_container_node_pool.pool["h100-a3-highgpu-1g-spot"].node_locations == toset(["europe-west4-b"])
    error_message = "a pool is in zones that do not have its GPUs"
  }
  assert {
    condition     = google_container_cluster.this.node_locations == toset(["europe-west4-a", "europe-west4-b"]) && google_storage_bucket.data.location == "europe-west4"
    error_message = "nodes and bucket are not in the region"
  }
}

run "what_the_chart_is_told" {
  command = apply

  assert {
    condition     = yamldecode(output.helm_values).jobs == "gs://lading-my-project-us-central1/jobs" && yamldecode(output.helm_values).cloud == "gke"
    error_message = "jobs would be registered elsewhere"
  }
  assert {
    condition     = yamldecode(output.helm_values).env == { GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT = "false" }
    error_message = "each step of gcsfs would ask for what its role may not"
  }
  assert {
    condition     = yamldecode(output.helm_values).images.workerCuda.repository == "us-central1-docker.pkg.dev/my-project/lading/lading-worker-cuda"
    error_message = "images would be looked for elsewhere"
  }
  assert {
    condition     = yamldecode(output.helm_values).redis == { nodeSelector = { "lading.dev/pool" = "system" } }
    error_message = "the chart is told of a Redis that is not there"
  }
}
