# What the project would answer.

mock_data "google_project" {
  defaults = { number = "987654321098" }
}

mock_resource "google_service_account" {
  defaults = { email = "lading-node@my-project.iam.gserviceaccount.com" }
}

mock_resource "google_redis_instance" {
  defaults = { host = "10.9.8.3", port = 6378, server_ca_certs = [{ cert = "-----BEGIN CERTIFICATE-----", create_time = "", expire_time = "", serial_number = "", sha1_fingerprint = "" }] }
}
