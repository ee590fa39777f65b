# What pods, and what helps them, may do in the account.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
  read_only            = [{ bucket = "corpora", prefix = "wiki/" }]
  read_write           = [{ bucket = "lake", prefix = "vectors/" }]
}

run "each_role_has_its_prefixes" {
  command = apply # policies name what is made

  assert {
    condition = {
      for role, rights in aws_iam_role_policy.pod : role => toset(flatten([
        for statement in jsondecode(rights.policy).Statement : statement.Resource if contains(statement.Action, "s3:PutObject")
      ]))
      } == {
      for role in ["worker", "producer", "scheduler"] : role => toset([
        "arn:aws:s3:::lading-123456789012-eu-central-1/jobs/*", "arn:aws:s3:::lading-123456789012-eu-central-1/outputs/*", "arn:aws:s3:::lake/vectors/*",
      ])
    }
    error_message = "a role writes elsewhere than in jobs/, outputs/ and what it was given"
  }
  assert {
    condition = alltrue([
      for role in ["worker", "producer"] : toset(flatten([
        for statement in jsondecode(aws_iam_role_policy.pod[role].policy).Statement : statement.Resource if statement.Action == ["s3:GetObject"]
      ])) == toset(["arn:aws:s3:::lading-123456789012-eu-central-1/sources/*", "arn:aws:s3:::corpora/wiki/*"])
    ])
    error_message = "workers and producers read sources, and nothing else"
  }
  assert {
    condition     = !strcontains(aws_iam_role_policy.pod["scheduler"].policy, "sources") && !strcontains(aws_iam_role_policy.pod["scheduler"].policy, "corpora")
    error_message = "the scheduler reads documents"
  }
  assert {
    condition = alltrue(flatten([
      for rights in aws_iam_role_policy.pod : [
        for statement in jsondecode(rights.policy).Statement : try(length(statement.Condition.StringLike["s3:prefix"]) > 0 && !contains(statement.Condition.StringLike["s3:prefix"], "*"), false)
        if contains(statement.Action, "s3:ListBucket")
      ]
    ]))
    error_message = "a role lists whole buckets"
  }
  assert {
    condition = alltrue(flatten([
      for rights in aws_iam_role_policy.pod : [for statement in jsondecode(rights.policy).Statement : !contains(statement.Resource, "*") && alltrue([for action in statement.Action : !strcontains(action, "*")])]
    ]))
    error_message = "a role has rights by wildcard"
  }
}

run "a_role_trusts_one_service_account" {
  command = apply

  variables {
    namespace        = "batch"
    service_accounts = { worker = "w" }
  }

  assert {
    condition = {
      for role, it in aws_iam_role.pod : role => [for statement in jsondecode(it.assume_role_policy).Statement : statement.Condition.StringEquals["oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLE:sub"]]
      } == {
      worker    = ["system:serviceaccount:batch:w"]
      producer  = ["system:serviceaccount:batch:lading-producer"]
      scheduler = ["system:serviceaccount:batch:lading-scheduler"]
    }
    error_message = "a role is open to other service accounts"
  }
  assert {
    condition     = alltrue([for it in aws_iam_role.pod : jsondecode(it.assume_role_policy).Statement[0].Condition.StringEquals["oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLE:aud"] == "sts.amazonaws.com"])
    error_message = "tokens that were made for others open a role"
  }
}

run "the_autoscaler_scales_this_cluster_alone" {
  command = apply

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.autoscaler.policy).Statement :
      statement.Condition.StringEquals["aws:ResourceTag/k8s.io/cluster-autoscaler/lading"] == "owned" if contains(flatten([statement.Action]), "autoscaling:SetDesiredCapacity")
    ])
    error_message = "Cluster Autoscaler may resize groups of others"
  }
  assert {
    condition     = yamldecode(output.cluster_autoscaler_values).expanderPriorities["20"] == [".*-spot-.*"] && yamldecode(output.cluster_autoscaler_values).extraArgs.expander == "priority"
    error_message = "on-demand nodes would be tried before spot"
  }
}

run "notices_of_interruptions" {
  command = apply

  assert {
    condition     = toset([for rule in aws_cloudwatch_event_rule.interruptions : jsondecode(rule.event_pattern)["detail-type"][0]]) == toset(["EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation", "EC2 Instance State-change Notification", "AWS Health Event"])
    error_message = "a kind of notice does not reach the queue"
  }
  assert {
    condition     = aws_sqs_queue.interruptions[0].sqs_managed_sse_enabled && toset(jsondecode(aws_sqs_queue_policy.interruptions[0].policy).Statement[0].Condition.ArnEquals["aws:SourceArn"]) == toset([for rule in aws_cloudwatch_event_rule.interruptions : rule.arn])
    error_message = "others than our rules may put notices into the queue"
  }
  assert {
    condition     = yamldecode(output.termination_handler_values).queueURL == aws_sqs_queue.interruptions[0].url
    error_message = "the handler listens elsewhere"
  }
}

run "without_the_queue" {
  command = apply

  variables {
    interruption_queue = false
  }

  assert {
    condition     = length(aws_sqs_queue.interruptions) == 0 && length(aws_cloudwatch_event_rule.interruptions) == 0 && output.termination_handler_values == null
    error_message = "something of the interruption queue is left"
  }
}

run "a_key_of_ones_own" {
  command = apply

  variables {
    bucket_kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"
  }

  assert {
    condition     = alltrue([for rights in aws_iam_role_policy.pod : anytrue([for statement in jsondecode(rights.policy).Statement : contains(statement.Action, "kms:GenerateDataKey") && try(statement.Condition.StringEquals["kms:ViaService"] == "s3.eu-central-1.amazonaws.com", false)])])
    error_message = "pods cannot write under the bucket's key, or may use it for other things"
  }
  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.data.rule).bucket_key_enabled
    error_message = "each object costs a request to KMS"
  }
}
