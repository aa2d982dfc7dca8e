"""Reading files that strangers made, without running anything in them."""
