# What Cluster Autoscaler is told of groups that have no node.

mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
}

run "groups_are_known_while_they_are_empty" {
  command = apply # the names of the auto scaling groups are known then

  assert {
    condition = {
      for key, tag in aws_autoscaling_group_tag.template :
      trimprefix(one(tag.tag).key, "k8s.io/cluster-autoscaler/node-template/") => one(tag.tag).value if startswith(key, "a100-spot/")
      } == {
      "label/lading.dev/pool"                = "a100"
      "label/lading.dev/capacity"            = "spot"
      "label/k8s.amazonaws.com/accelerator"  = "a100"
      "label/nvidia.com/gpu.present"         = "true"
      "label/eks.amazonaws.com/capacityType" = "SPOT"
      "taint/nvidia.com/gpu"                 = "present:NoSchedule"
      "resources/nvidia.com/gpu"             = "8"
      "resources/ephemeral-storage"          = "100Gi"
    }
    error_message = "Cluster Autoscaler cannot tell that a pod of a100 would fit on a node that is not there yet"
  }
  assert {
    condition     = aws_autoscaling_group_tag.template["cpu-on-demand/taint"].tag[0].value == "cpu:NoSchedule" && aws_autoscaling_group_tag.template["cpu-on-demand/capacity"].tag[0].value == "ON_DEMAND"
    error_message = "Cluster Autoscaler would make nodes of processors for pods that do not go there"
  }
  assert {
    condition     = alltrue([for tag in aws_autoscaling_group_tag.template : tag.autoscaling_group_name == "eks-group"])
    error_message = "tags go to something else than the node groups' auto scaling groups"
  }
  assert {
    condition     = alltrue([for group in aws_eks_node_group.pool : group.subnet_ids == toset([aws_subnet.private["eu-central-1a"].id, aws_subnet.private["eu-central-1c"].id])])
    error_message = "a group asks for nodes in a zone that does not have them"
  }
}
