# A first installation on Google Cloud: processors and L4s on spot, the API server reached from your own address. Step by step:
# deploy/README.md.
#
# Terraform's state lies in this folder unless you name a backend; with Memorystore it holds that one's password. Use a bucket:
#   terraform { backend "gcs" { bucket = "...", prefix = "lading" } }

terraform {
  required_version = ">= 1.9"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 7.0"
    }
  }
}

variable "project" {
  description = "The project's id."
  type        = string
}

variable "my_cidrs" {
  description = "Addresses from which you reach the API server, like [\"203.0.113.7/32\"]. None: from within the VPC alone."
  type        = list(string)
  default     = []
}

variable "memorystore" {
  description = "Whether to make a Memorystore; else the chart brings its own Redis for a trial."
  type        = bool
  default     = false
}

variable "force_destroy" {
  description = "Set before tearing down: the bucket goes with all that is in it."
  type        = bool
  default     = false
}

provider "google" {
  project = var.project
}

module "lading" {
  source = "../../gcp"

  project              = var.project
  api_public_cidrs     = var.my_cidrs
  deletion_protection  = false # a trial is to be torn down
  bucket_force_destroy = var.force_destroy
  labels               = { project = "lading" }

  pools = {
    cpu = { machine_types = ["n2-standard-16", "c3-standard-22"] }
    l4 = {
      machine_types = ["g2-standard-4", "g2-standard-8"]
      accelerator   = "nvidia-l4"
      gpus          = 1
      local_ssds    = { g2-standard-4 = 1, g2-standard-8 = 1 }
    }
  }

  redis = var.memorystore ? {} : null
}

output "cluster_name" {
  value = module.lading.cluster_name
}

output "region" {
  value = module.lading.region
}

output "bucket" {
  value = module.lading.bucket
}

output "image_repositories" {
  value = module.lading.image_repositories
}

output "redis_host" {
  value = module.lading.redis_host
}

output "redis_ca" {
  value = module.lading.redis_ca
}

output "helm_values" {
  value = module.lading.helm_values
}
