"""Stage 2: episodes on cached features, with ASI, AMD and AMI."""
