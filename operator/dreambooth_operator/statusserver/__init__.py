"""Where trainers report: an HTTP endpoint that any replica serves, leader or not."""
