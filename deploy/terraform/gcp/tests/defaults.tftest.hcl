# What the module makes when it is told nothing but the project.

mock_provider "google" {
  source = "./tests/mocks"
}

variables {
  project = "my-project"
}

run "idle_pools_cost_nothing" {
  command = plan

  assert {
    condition     = alltrue([for group in google_container_node_pool.pool : group.initial_node_count == 0 && group.autoscaling[0].total_min_node_count == 0])
    error_message = "a group of a pool would keep nodes without work"
  }
  assert {
    condition     = alltrue([for group in google_container_node_pool.pool : group.autoscaling[0].total_max_node_count >= 1])
    error_message = "a group of a pool could never have a node"
  }
  assert {
    condition     = google_container_node_pool.system.node_config[0].spot != true && google_container_node_pool.system.autoscaling[0].total_min_node_count == 2
    error_message = "what wakes the pools needs nodes of its own, not on spot"
  }
  assert {
    condition     = length(google_redis_instance.this) == 0 && !google_container_cluster.this.monitoring_config[0].managed_prometheus[0].enabled
    error_message = "something is always on that nobody asked for"
  }
}

run "spot_finds_capacity" {
  command = plan

  assert {
    condition = toset([for name, group in google_container_node_pool.pool : name if group.node_config[0].spot == true]) == toset([
      "cpu-n2-standard-16-spot", "cpu-c3-standard-22-spot", "l4-g2-standard-4-spot", "l4-g2-standard-8-spot", "l4-g2-standard-12-spot",
      "a100-a2-highgpu-1g-spot", "h100-a3-highgpu-1g-spot",
    ])
    error_message = "each type of machine of a pool has a spot group, and only those are spot"
  }
  assert {
    condition     = toset([for name, group in google_container_node_pool.pool : name if group.node_config[0].spot != true]) == toset(["cpu-on-demand", "l4-on-demand", "a100-on-demand"])
    error_message = "a pool has nothing to fall back to, or one on demand that Google does not sell"
  }
  assert {
    condition     = alltrue([for group in google_container_node_pool.pool : group.autoscaling[0].location_policy == "ANY"])
    error_message = "a group waits for capacity in zones that have none"
  }
  assert {
    condition     = alltrue([for name, group in google_container_node_pool.pool : length(name) <= 40])
    error_message = "GKE would refuse a name"
  }
}

run "pods_find_their_nodes" {
  command = plan

  assert {
    condition = alltrue([
      for name, group in google_container_node_pool.pool :
      startswith(name, "${group.node_config[0].labels["lading.dev/pool"]}-") && endswith(name, "-${group.node_config[0].labels["lading.dev/capacity"]}")
    ])
    error_message = "a group's labels are not those that the chart's pools select by"
  }
  assert {
    condition = alltrue([
      for name, group in google_container_node_pool.pool :
      one(group.node_config[0].taint).key == (startswith(name, "cpu-") ? "lading.dev/pool" : "nvidia.com/gpu")
      && one(group.node_config[0].taint).value == (startswith(name, "cpu-") ? "cpu" : "present") && one(group.node_config[0].taint).effect == "NO_SCHEDULE"
    ])
    error_message = "a group does not carry the taint that the chart's pools tolerate, and nothing else does"
  }
  assert {
    condition = {
      for name, group in google_container_node_pool.pool : split("-", name)[0] => one(group.node_config[0].guest_accelerator).type...
      if length(group.node_config[0].guest_accelerator) > 0
      } == {
      l4   = ["nvidia-l4", "nvidia-l4", "nvidia-l4", "nvidia-l4"]
      a100 = ["nvidia-tesla-a100", "nvidia-tesla-a100"]
      h100 = ["nvidia-h100-80gb"]
    }
    error_message = "a pool's nodes have other GPUs than its name says"
  }
  assert {
    condition = alltrue([
      for group in google_container_node_pool.pool : group.node_config[0].guest_accelerator[0].gpu_driver_installation_config[0].gpu_driver_version == "LATEST"
      if length(group.node_config[0].guest_accelerator) > 0
    ])
    error_message = "nodes get no driver, or one too old for CUDA 13"
  }
}

run "the_api_is_private" {
  command = plan

  assert {
    condition     = google_container_cluster.this.private_cluster_config[0].enable_private_endpoint && google_container_cluster.this.private_cluster_config[0].enable_private_nodes
    error_message = "the API server or nodes are on the internet"
  }
  assert {
    condition     = length(google_container_cluster.this.master_authorized_networks_config[0].cidr_blocks) == 0 && !google_container_cluster.this.master_authorized_networks_config[0].gcp_public_cidrs_access_enabled
    error_message = "the API server answers others than the nodes"
  }
  assert {
    condition     = google_container_cluster.this.database_encryption[0].state == "ENCRYPTED" && google_kms_crypto_key.secrets.rotation_period != null
    error_message = "Secrets lie in etcd without a key of our own"
  }
  assert {
    condition     = length(setsubtract(["APISERVER", "CONTROLLER_MANAGER", "SCHEDULER"], google_container_cluster.this.logging_config[0].enable_components)) == 0
    error_message = "a log of the control plane is not kept"
  }
  assert {
    condition     = google_container_cluster.this.datapath_provider == "ADVANCED_DATAPATH"
    error_message = "nothing enforces the chart's network policies"
  }
  assert {
    condition     = google_container_cluster.this.master_auth[0].client_certificate_config[0].issue_client_certificate == false && google_container_cluster.this.enable_legacy_abac != true
    error_message = "there are ways in that nobody can close"
  }
}

run "nodes_are_closed" {
  command = apply # the account's name is known then

  assert {
    condition     = alltrue([for group in concat([google_container_node_pool.system], values(google_container_node_pool.pool)) : group.node_config[0].workload_metadata_config[0].mode == "GKE_METADATA"])
    error_message = "pods take the nodes' identity"
  }
  assert {
    condition     = alltrue([for group in concat([google_container_node_pool.system], values(google_container_node_pool.pool)) : group.node_config[0].service_account == google_service_account.node.email])
    error_message = "nodes run as the project's default account, which is an editor"
  }
  assert {
    condition     = [for grant in google_project_iam_member.node : grant.role] == ["roles/container.defaultNodeServiceAccount"]
    error_message = "nodes have more rights in the project than to log and to be measured"
  }
  assert {
    condition     = google_compute_firewall.control_plane.source_ranges == toset(["10.50.32.0/28"]) && google_compute_firewall.control_plane.target_service_accounts == toset([google_service_account.node.email])
    error_message = "others than the control plane reach webhooks on the nodes"
  }
}

run "the_bucket_is_closed" {
  command = plan

  assert {
    condition     = google_storage_bucket.data.public_access_prevention == "enforced" && google_storage_bucket.data.uniform_bucket_level_access
    error_message = "the bucket can be made public"
  }
  assert {
    condition     = anytrue([for rule in google_storage_bucket.data.lifecycle_rule : one(rule.action).type == "AbortIncompleteMultipartUpload" && try(one(rule.condition).age <= 7, false)])
    error_message = "uploads that never ended stay, and are paid for, for ever"
  }
  assert {
    condition     = !google_storage_bucket.data.force_destroy && google_container_cluster.this.deletion_protection
    error_message = "`terraform destroy` would delete outputs, or the cluster, without being asked twice"
  }
}

run "images_stay_what_they_are" {
  command = plan

  assert {
    condition     = google_artifact_registry_repository.images.docker_config[0].immutable_tags && google_artifact_registry_repository.images.vulnerability_scanning_config[0].enablement_config == "INHERITED"
    error_message = "a tag can be moved, or images are not scanned"
  }
  assert {
    condition     = contains(keys(google_project_service.api), "containerscanning") && contains(keys(google_project_service.api), "containerfilesystem")
    error_message = "an API that scanning or streaming of images needs is off"
  }
}
