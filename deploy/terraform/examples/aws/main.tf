# A first installation on AWS: processors and L4s on spot, the API server reached from your own address. Step by step: deploy/README.md.
#
# Terraform's state lies in this folder unless you name a backend. For more than one person use a bucket:
#   terraform { backend "s3" { bucket = "...", key = "lading", region = "...", encrypt = true } }

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.25, < 7.0"
    }
  }
}

variable "region" {
  description = "Where all of this is made."
  type        = string
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster."
  type        = list(string)
}

variable "my_cidrs" {
  description = "Addresses from which you reach the API server, like [\"203.0.113.7/32\"]. None: from within the VPC alone."
  type        = list(string)
  default     = []
}

variable "redis_user_group" {
  description = "The group of ElastiCache users that was made beforehand; \"\": no ElastiCache, the chart brings its own Redis for a trial."
  type        = string
  default     = ""
}

variable "force_destroy" {
  description = "Set before tearing down: the bucket and the images go with all that is in them."
  type        = bool
  default     = false
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = "lading" } # what you filter the bill by
  }
}

module "lading" {
  source = "../../aws"

  admin_principal_arns = var.admin_principal_arns
  api_public_cidrs     = var.my_cidrs
  deletion_protection  = false # a trial is to be torn down
  bucket_force_destroy = var.force_destroy

  pools = {
    cpu = { instance_types = ["c7i.4xlarge", "c7a.4xlarge", "c6i.4xlarge"] }
    l4  = { instance_types = ["g6.xlarge", "g6.2xlarge", "g6.4xlarge"], gpus = 1 }
  }

  redis = var.redis_user_group == "" ? null : { user_group_id = var.redis_user_group }
}

output "cluster_name" {
  value = module.lading.cluster_name
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

output "helm_values" {
  value = module.lading.helm_values
}

output "cluster_autoscaler_values" {
  value = module.lading.cluster_autoscaler_values
}

output "termination_handler_values" {
  value = module.lading.termination_handler_values
}
