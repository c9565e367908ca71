"""What people test their flows and rules with."""
