# What pods may do in buckets, by role and by prefix. Of all else in the account: nothing.
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

  roles = {
    worker    = { read = local.read, written = local.written }
    producer  = { read = local.read, written = local.written }
    scheduler = { read = [], written = local.written }
  }

  objects = {
    for role, places in local.roles : role => {
      for what in ["read", "written"] : what => [for place in places[what] : "arn:${local.partition}:s3:::${place.bucket}/${place.prefix}*"]
    }
  }

  # Listing is a right on the bucket, so it is narrowed by what is asked for: in the prefix, or the prefix itself without its slash.
  lists = {
    for role, places in local.roles : role => {
      for place in concat(places.read, places.written) : place.bucket => place.prefix...
    }
  }

  bucket_rights = {
    for role, places in local.roles : role => jsonencode({
      Version = "2012-10-17"
      Statement = concat(
        [
          for bucket, prefixes in local.lists[role] : {
            Effect   = "Allow"
            Action   = ["s3:ListBucket"]
            Resource = ["arn:${local.partition}:s3:::${bucket}"]
            Condition = {
              StringLike = { "s3:prefix" = flatten([for prefix in sort(prefixes) : prefix == "" ? ["*"] : [trimsuffix(prefix, "/"), "${prefix}*"]]) }
            }
          }
        ],
        [
          {
            Effect   = "Allow"
            Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
            Resource = local.objects[role].written
          },
        ],
        length(places.read) == 0 ? [] : [
          {
            Effect   = "Allow"
            Action   = ["s3:GetObject"]
            Resource = local.objects[role].read
          },
        ],
        var.bucket_kms_key_arn == null ? [] : [
          {
            Effect    = "Allow"
            Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
            Resource  = [var.bucket_kms_key_arn]
            Condition = { StringEquals = { "kms:ViaService" = "s3.${local.region}.amazonaws.com" } }
          },
        ],
      )
    })
  }
}

resource "aws_iam_role" "pod" {
  for_each           = local.roles
  name               = "${var.name}-${each.key}"
  assume_role_policy = local.trust["${var.namespace}:${var.service_accounts[each.key]}"]
  tags               = var.tags
}

resource "aws_iam_role_policy" "pod" {
  for_each = local.roles
  name     = "buckets"
  role     = aws_iam_role.pod[each.key].id
  policy   = local.bucket_rights[each.key]
}
