"""What packets carry: each module reads one protocol from bytes, and never raises."""
